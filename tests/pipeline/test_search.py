"""The stage `search` on tiny drawn data: a real Ray, a real study, a killed driver and a killed trial."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from masm.data.ingest import ingest
from tests.conftest import ROOT
from tests.data.test_ingest import make_settings
from tests.pipeline.test_compare import lock_data
from tests.pipeline.workspace import edit, run
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

NAMES = ["rank", "subspaces", "mask_threshold", "lambda_orth", "lambda_spec"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose data are ingested, of 18 people at 64 px."""
    folder = tmp_path_factory.mktemp("search") / "workspace"
    folder.mkdir()
    settings = make_settings(folder, faces__people=18)
    names = ("swap", "selfblend")
    for name in names:
        ingest(settings, name, lambda done, total: None)
    tree = yaml.safe_load((folder / "params.yaml").read_text())
    changes = {
        "datasets": {name: tree["datasets"][name] for name in names},
        "gate.floors": {"default": None},
        "mlflow.tracking_uri": f"sqlite:///{folder.parent}/mlflow.db",
        "adapter.cache": str(folder.parent / "decompositions"),
        "search.trials": 3,
        "search.optimisation.epochs": 3,
    }
    edit(folder / "params.yaml", changes)
    lock_data(settings, dict.fromkeys(names, "0" * 32))
    run("git", "init", "-q", folder=folder)  # in a checkout the stage clears up behind it
    return folder


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the stage with settings and a storage of the test's own."""
    plain = (root / "params.yaml").read_text()
    begun: list[subprocess.Popen[str]] = []

    def begin(changes: dict[str, Any]) -> subprocess.Popen[str]:
        (root / "params.yaml").write_text(plain)
        edit(root / "params.yaml", {"ray.storage": str(tmp_path / "ray"), **changes})
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "pipelines.search"],
                cwd=root,
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()
    (root / "params.yaml").write_text(plain)


def clean_environment() -> dict[str, str]:
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MASM_STUDY_STORAGE")
    kept = {key: value for key, value in os.environ.items() if key not in foreign}
    return {**kept, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def ended(process: subprocess.Popen[str], died: bool = False) -> str:
    """What a stage that must succeed has said; Ray itself prints that a process `died`, nothing else is printed."""
    printed, said = process.communicate(timeout=480)
    assert process.returncode == 0, said[-3000:]
    assert ("A worker died" in printed) if died else printed == ""
    return said


def states(storage: Path) -> list[tuple[int, str]]:
    """Number and state of every trial of all studies, by plain SQL."""
    if not (storage / "studies.db").is_file():
        return []
    with sqlite3.connect(storage / "studies.db") as database:  # it may roll back what a killed driver left
        return database.execute("select number, state from trials order by number").fetchall()


def checkpoints(storage: Path) -> dict[str, Path]:
    return {path.name: path for path in storage.glob("search-*/trial-*.tar")}


def trial_processes(stage: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(stage.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "TrialRun" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_search_goes_on_and_ends_as_if_undisturbed(
    root: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """The driver dies while trials run; in the stage that goes on, a trial's process dies."""
    storage = tmp_path / "ray"
    stage = start({})
    wait_for(
        "checkpoints of two trials",
        lambda: len(checkpoints(storage)) >= 2 and len(states(storage)) >= 2,
        pause=0.02,
        process=stage,
    )
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    before = states(storage)
    assert "RUNNING" in {state for _, state in before}
    stage = start({})
    (victim, *_) = wait_for("a trial's process", lambda: trial_processes(stage), pause=0.02, process=stage)
    victim.kill()
    ended(stage, died=True)
    assert states(storage) == [(number, "COMPLETE") for number in range(3)]
    assert not list(storage.glob("search-*"))  # nothing is left but the study
    trials, epochs = (pd.read_csv(root / "search" / f"{name}.csv") for name in ("trials", "epochs"))
    assert trials["epochs"].tolist() == [3, 3, 3]
    assert epochs[["trial", "epoch"]].values.tolist() == [[trial, epoch] for trial in range(3) for epoch in (1, 2, 3)]
    best = json.loads((root / "search" / "best.json").read_text())
    assert (best["trials"], best["stopped"], best["failed"]) == (3, 0, 0)
    assert best["score"] == trials["score"].max() == epochs.loc[epochs["epoch"] == 3, "score"].max()
    compare_with_undisturbed(root, tmp_path, start, trials, epochs, 2)  # of a third it may have drawn a part


def compare_with_undisturbed(
    root: Path, tmp_path: Path, start: Callable[..., Any], trials: pd.DataFrame, epochs: pd.DataFrame, begun: int
) -> None:
    """The trials that the killed driver had begun have the points and the scores that they have without a kill.

    The other search has a second objective, and takes the smallest of its trials.
    """
    second = {"name": "trainable_parameters", "tolerance": 1.0}
    changes = {"search.second_objective": second, "search.space.rank.values": [2]}
    ended(start({"ray.storage": str(tmp_path / "undisturbed"), "search.trials": begun, **changes}))
    expected, lines = (pd.read_csv(root / "search" / f"{name}.csv") for name in ("trials", "epochs"))
    same = ["trial", "state", "epochs", "score", *NAMES]
    assert expected.columns.tolist() == [*same, second["name"], "seconds"]
    pd.testing.assert_frame_equal(trials.loc[: begun - 1, same], expected[same])
    same = [name for name in lines if name != "seconds"]
    pd.testing.assert_frame_equal(epochs.loc[epochs["trial"] < begun, same].reset_index(drop=True), lines[same])
    best = json.loads((root / "search" / "best.json").read_text())
    assert best["second_objective"] == {**second, "value": expected[second["name"]].min()}
    assert best["trial"] in best["front"]
    assert expected.groupby("subspaces")[second["name"]].nunique().max() == 1


def test_stopping_and_mistakes_in_one_search(
    root: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """One trial after the other: the first is complete, worse ones are stopped, what diverges has failed."""
    rates = {"type": "choice", "values": [1e-3, 1e30]}
    said = ended(
        start(
            {
                "search.trials": 6,
                "search.concurrent": 1,
                "search.stopping": {"grace_epochs": 1, "reduction": 2},
                "search.space.lr": rates,
                "search.optimisation.lr": None,
                "train.lr": None,
            }
        )
    )
    trials, epochs = (pd.read_csv(root / "search" / f"{name}.csv") for name in ("trials", "epochs"))
    best = json.loads((root / "search" / "best.json").read_text())
    assert trials["trial"].tolist() == list(range(6))
    diverged = trials[trials["lr"] == 1e30]
    assert len(diverged) == best["failed"] > 0
    assert (diverged["state"] == "FAIL").all()
    assert diverged["score"].isna().all()
    assert f"{len(diverged)} trials of the search failed; the first: the loss is" in said
    assert "Traceback" not in said
    rest = trials[trials["lr"] == 1e-3]
    assert ((rest["state"] == "PRUNED") == (rest["epochs"] < 3)).all()
    assert best["stopped"] == (rest["state"] == "PRUNED").sum()
    first = []
    for trial in rest["trial"]:  # the rule of ASHA, by hand: on each rung the better half goes on
        scores = epochs.loc[epochs["trial"] == trial, "score"].tolist()
        first.append(scores[0])
        assert (len(scores) >= 2) == (len(first) == 1 or scores[0] >= pd.Series(first[:-1]).median())
    assert best["score"] == rest.loc[rest["state"] == "COMPLETE", "score"].max()
    assert best["hyperparameters"]["lr"] == 1e-3
