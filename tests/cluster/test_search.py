"""A search whose study PostgreSQL keeps: it has one driver, and survives it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from masm.errors import UserError
from masm.search import sole_driver, study_storage
from masm.settings import load_settings
from tests.cluster.ray_cluster import Cluster
from tests.cluster.services import Database
from tests.pipeline.workspace import edit
from tests.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TRIALS, EPOCHS = 5, 2
TRIED = """
SELECT number, state::text, (SELECT coalesce(array_agg(param_name || '=' || param_value), '{}')
  FROM trial_params WHERE trial_params.trial_id = trials.trial_id)
FROM trials ORDER BY number
"""
SCORES = """
SELECT number, step FROM trial_intermediate_values JOIN trials USING (trial_id) ORDER BY number, step
"""


def test_a_study_has_one_driver(database: Database) -> None:
    here, there = (RDBStorage(database.url("study")) for _ in range(2))
    with sole_driver("driven", here):
        with pytest.raises(UserError, match="another stage runs the study driven"), sole_driver("driven", there):
            pass
        with sole_driver("another", there):
            pass
    with sole_driver("driven", there):  # the first has ended
        pass


def test_searches_that_begin_at_once_make_the_tables_once(
    database: Database, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.query("postgres", "CREATE DATABASE fresh")
    monkeypatch.setenv("MASM_STUDY_STORAGE", database.url("fresh"))
    with ThreadPoolExecutor(4) as pool:
        storages = list(pool.map(study_storage, [load_settings(workspace / "params.yaml")] * 4))
    assert [optuna.get_all_study_names(storage) for storage in storages] == [[]] * 4


def test_no_trial_is_lost_or_doubled(cluster: Cluster, workspace: Path, database: Database) -> None:
    edit(workspace / "params.yaml", {"search.trials": TRIALS, "search.optimisation.epochs": EPOCHS})
    job = cluster.submit("search", workspace)

    def states() -> list[object]:
        if job.info.status.is_terminal():
            raise AssertionError(job.logs)
        known = database.query("study", "SELECT 1 FROM pg_tables WHERE tablename = 'trial_intermediate_values'")
        return [state for _, state, _ in database.query("study", TRIED)] if known else []

    wait_for("a trial that has ended, and one at work", lambda: {"COMPLETE", "RUNNING"} <= set(states()))
    (driver,) = [each for each in cluster.machines["head"].find("-m pipelines.search") if "python" in each.name()]
    driver.kill()
    assert job.wait() == "FAILED"
    before = database.query("study", TRIED)
    assert "RUNNING" in [state for _, state, _ in before]

    again = cluster.submit("search", workspace)
    assert again.wait() == "SUCCEEDED", again.logs
    after = database.query("study", TRIED)
    assert [(number, state) for number, state, _ in after] == [(number, "COMPLETE") for number in range(TRIALS)]
    for (*_, begun), (*_, point) in zip(before, after, strict=False):
        assert set(begun) <= set(point)  # the driver may have died while it drew one
    assert len({frozenset(point) for *_, point in after}) == TRIALS
    assert database.query("study", SCORES) == [
        (number, epoch) for number in range(TRIALS) for epoch in range(1, EPOCHS + 1)
    ]
