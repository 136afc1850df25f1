"""What the search tells the study, ASHA and MLflow, without a Ray that runs."""

from __future__ import annotations

import errno
import math
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from masm.errors import UserError
from masm.search import own_trials, record_epochs
from masm.settings import Mlflow
from masm.storage import store
from masm.tracking import Recorder, journal_path
from masm.tracking.journal import read_entries
from pipelines.search import describe, main
from pipelines.trials import TrialRun
from pipelines.tuning import Follower, FullStorage, StudySearch, Trials, make_scheduler, record_ended
from tests.pipeline.test_compare import lock_data
from tests.search.test_study import ask, line, opened, run, settings_of

NOWHERE = Mlflow(tracking_uri="http://127.0.0.1:9", artifacts="artifacts", experiment="search", model="unused")


def history(*scores: float) -> dict[str, Any]:
    """A result as trials report it."""
    lines = [line(epoch, score) for epoch, score in enumerate(scores, start=1)]
    return {**lines[-1], "history": lines}


def entries(journal: Path) -> list[dict[str, Any]]:
    return [{**entry, "time": 0} for entry, _ in read_entries(journal, 0) if entry is not None]


class NoRoom(TrialRun):
    """A trial that finds the storage full."""

    def __init__(self, number: int) -> None:
        self._work = "/storage"
        self._settings = SimpleNamespace(search=SimpleNamespace(second_objective=None))
        self.reset_config({"number": 7})
        self._number = number

    def _begin(self) -> Any:
        raise OSError(self._number, "no room")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_storage_ends_the_search_and_leaves_its_trials_to_the_next(tmp_path: Path, number: int) -> None:
    settings = settings_of(tmp_path)
    study = opened(settings)
    search, stopper = StudySearch(study, settings), FullStorage()
    for name in ("ended", "runs", "full"):
        search.suggest(name)
    search.on_trial_complete("ended", history(0.5, 0.6))
    search.on_trial_result("runs", history(0.5))
    assert not stopper("runs", history(0.5))
    assert not stopper.stop_all()
    result = NoRoom(number).step()
    assert result["done"]
    stopper("full", result)
    search.on_trial_complete("full", result)
    assert stopper.stop_all()
    assert "the storage path /storage is full" in stopper.words
    assert [trial.state.name for trial in own_trials(study)] == ["COMPLETE", "RUNNING", "RUNNING"]


def test_other_errors_of_a_trial_are_no_result() -> None:
    with pytest.raises(PermissionError):
        NoRoom(errno.EACCES).step()


def test_a_checkpoint_that_finds_no_room_leaves_the_former_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "storage" / "trial-0.tar"
    source.mkdir()
    (source / "weights").write_bytes(b"0" * 1000)
    store(source, str(target))
    former = target.read_bytes()
    (source / "weights").write_bytes(b"1" * 3_000_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store(source, str(target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in target.parent.iterdir()] == ["trial-0.tar"]
    assert target.read_bytes() == former


@pytest.mark.parametrize("last", [False, True])
def test_asha_knows_the_epochs_that_a_trial_trained_before_a_restart(tmp_path: Path, last: bool) -> None:
    changes = {"search__stopping": {"grace_epochs": 1, "reduction": 2}, "search__optimisation__epochs": 4}
    scheduler = make_scheduler(settings_of(tmp_path, **changes).search, [])
    resumed, worse, better = (SimpleNamespace(trial_id=name) for name in ("resumed", "worse", "better"))
    for trial in (resumed, worse, better):
        scheduler.on_trial_add(None, trial)
    if last:
        scheduler.on_trial_complete(None, resumed, history(0.5, 0.6, 0.7, 0.8))
    else:
        assert scheduler.on_trial_result(None, resumed, history(0.5, 0.6)) == "CONTINUE"
    assert scheduler.on_trial_result(None, worse, history(0.4)) == "STOP"
    assert scheduler.on_trial_result(None, better, history(0.55)) == "CONTINUE"
    assert scheduler.on_trial_result(None, better, history(0.55, 0.59)) == "STOP"


def test_trials_that_ended_while_the_driver_died_are_recorded(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    study = opened(settings)
    run(study, settings, [0.5, 0.6])
    run(study, settings, [0.4])
    failed, _ = ask(study, settings)
    study.tell(failed, state=optuna.trial.TrialState.FAIL)
    running, _ = ask(study, settings)
    record_epochs(running, [line(1, 0.3)])
    journal = journal_path(tmp_path, "search")
    with Recorder(NOWHERE, journal, patience=0.1) as recorder:
        record_ended(recorder, study)
    found = entries(journal)
    key = study.study_name
    assert [entry["start"] for entry in found if "start" in entry] == [f"{key}/{n}" for n in range(3)]
    assert found[0]["params"] == study.trials[0].params
    assert found[0]["parent"] == key
    logged = [(entry["log"], entry["step"], entry["metrics"]["score"]) for entry in found if "log" in entry]
    assert logged == [(f"{key}/0", 1, 0.5), (f"{key}/0", 2, 0.6), (f"{key}/1", 1, 0.4)]
    ends = [(entry["status"], entry["tags"]["state"]) for entry in found if "finish" in entry]
    assert ends == [("FINISHED", "COMPLETE"), ("FINISHED", "PRUNED"), ("FAILED", "FAIL")]


def test_data_that_exchange_their_roles_are_other_data(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, search__study={"name": "mine"})
    lock_data(settings, {name: name for name in settings.datasets})
    work = describe(settings)
    opened(settings, work)
    roles = {"datasets__swap__role": "validate", "datasets__selfblend__role": "train"}
    exchanged = settings_of(tmp_path, search__study={"name": "mine"}, **roles)
    assert describe(exchanged).name != work.name
    with pytest.raises(UserError, match="the study mine was made with other data"):
        opened(exchanged, describe(exchanged))


def test_a_search_that_has_ended_keeps_its_table_and_clears_up_behind_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, search__trials=1, search__study={"name": "mine"})
    lock_data(settings, dict.fromkeys(settings.datasets, "0" * 32))
    for name in settings.datasets:
        settings.table(name).mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    work = describe(settings)
    run(opened(settings, work), settings, [0.5, 0.6])
    own, other = (tmp_path / "ray" / f"{work.name}.{name}" for name in ("mine", "other"))
    for folder in (own, other):  # checkpoints of two searches that differ in their study's name alone
        folder.mkdir()
    journal = journal_path(tmp_path, "search")
    monkeypatch.setattr(
        "pipelines.search.stage_recorder", lambda settings, name: Recorder(NOWHERE, journal, patience=0.1)
    )
    main(settings)
    assert not own.exists()
    assert other.exists()
    kept = [(entry["keep"], entry["name"], entry["text"]) for entry in entries(journal) if "keep" in entry]
    assert kept == [("mine", "trials.csv", (tmp_path / "search" / "trials.csv").read_text())]


def test_trials_are_followed_in_a_log_and_in_mlflow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masm.console.LINE_SECONDS", 0.0)
    results = [
        history(0.5, 0.6),
        history(0.4),
        {**history(0.4), "score": math.nan},
        {**history(0.4), "full": "no room"},
    ]
    journal = journal_path(tmp_path, "search")
    with Recorder(NOWHERE, journal, patience=0.1) as recorder:
        follower = Follower(Trials(recorder, "mine"), 2, done=0, trials=4)
        for number, result in enumerate(results):
            trial = SimpleNamespace(config={"number": number, "rank": 2}, last_result=result)
            follower.on_trial_start(0, [], trial)
            follower.on_trial_result(0, [], trial, result)
            follower.on_trial_complete(0, [], trial)
    ends = {entry["finish"]: entry["tags"] for entry in entries(journal) if "finish" in entry}
    assert [ends[f"mine/{n}"] for n in range(3)] == [{"state": name} for name in ("COMPLETE", "PRUNED", "FAIL")]
    assert ends["mine/3"] == {}  # it has not ended: the stage goes on with it
    assert "search: 3 of 4" in capfd.readouterr().err
