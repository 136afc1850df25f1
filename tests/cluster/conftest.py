"""The cluster, which all tests share, and what runs on it."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import load_file

from masm.hyperparameters import read_best
from masm.settings import load_settings
from masm.training import Trainer
from pipelines.train import load_split, make_trainer
from tests.cluster.machines import BASE, BIN, Machine, clean_environment, made_machines
from tests.cluster.ray_cluster import Cluster, Job
from tests.cluster.services import Database, Tracking
from tests.conftest import ROOT
from tests.pipeline.workspace import edit, make_workspace, run
from tests.waiting import wait_for

DATASETS = {
    "swap": {"role": "train", "camera": "compact", "forgeries": ["swap"]},
    "selfblend": {"role": "validate", "camera": "compact", "forgeries": ["selfblend"]},
    "upsample": {"role": "test", "camera": "compact", "forgeries": ["upsample"]},
}
EPOCHS = 6
CODE = shutil.ignore_patterns("__pycache__")
AGREEMENT = 1e-5
"""Two workers add the gradients in another order than one process does."""


@pytest.fixture(scope="session", autouse=True)
def _ended_cleanly() -> Iterator[None]:
    """A terminated run takes down what it started, as a failed one does."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    former = signal.signal(signal.SIGTERM, leave)
    yield
    signal.signal(signal.SIGTERM, former)


@pytest.fixture(scope="session")
def machines() -> Iterator[dict[str, Machine]]:
    """Machines of our own; a second run on this computer waits for the first."""
    with FileLock(BASE.with_suffix(".lock")), made_machines() as made:
        yield made


@pytest.fixture(scope="session")
def database(machines: dict[str, Machine]) -> Database:
    """PostgreSQL."""
    database = Database(machines["services"])
    database.start()
    return database


@pytest.fixture(scope="session")
def tracking(machines: dict[str, Machine], database: Database) -> Tracking:
    """MLflow's server."""
    server = Tracking(machines["services"], database)
    server.start()
    return server


@pytest.fixture(scope="session")
def whole_cluster(machines: dict[str, Machine], tracking: Tracking, database: Database) -> Cluster:
    """Ray's head and nodes."""
    cluster = Cluster(machines, {**tracking.client, "MASM_STUDY_STORAGE": database.url("study")})
    cluster.start()
    return cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Cluster:
    """The same, with the nodes that the test before has lost."""
    whole_cluster.complete()
    return whole_cluster


@pytest.fixture(scope="session")
def local() -> dict[str, str]:
    """The environment of a laptop: no address from outside."""
    return {**clean_environment(), "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="session")
def prepared(machines: dict[str, Machine], local: Mapping[str, str]) -> Path:
    """A workspace with its code, in which the stages before `train` have run, and whose data are in the remote."""
    changes = {
        "code": ".", "datasets": DATASETS, "search.trials": 1, "train.epochs": EPOCHS,
        "ray.storage": str(BASE / "storage" / "trained"),
        "evaluate.robustness.frames": 0,
        "evaluate.share_frames": 0,
        "evaluate.embedding_frames": 0,
    }  # fmt: skip
    folder = make_workspace(BASE / "workspace", changes)
    for package in ("masm", "pipelines"):
        shutil.copytree(ROOT / package, folder / package, ignore=CODE)
    shutil.copyfile(ROOT / ".gitignore", folder / ".gitignore")
    for command in (["repro", "search"], ["push"]):
        done = run(str(BIN / "dvc"), *command, folder=folder, environment=dict(local))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def undisturbed(prepared: Path) -> Trainer:
    """The training by one process, without Ray: what every job has to come to."""
    settings = load_settings(prepared / "params.yaml")
    trainer = make_trainer(settings, read_best(settings), load_split(settings, "train"), load_split(settings, "val"))
    while not trainer.finished:
        trainer.run_epoch()
    return trainer


@pytest.fixture(scope="session")
def trained(whole_cluster: Cluster, prepared: Path) -> Job:
    """A job that trained in peace."""
    job = whole_cluster.submit("train", prepared)
    job.wait()
    return job


@pytest.fixture
def workspace(prepared: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The prepared workspace, with a storage path of the test's own."""
    text = (prepared / "params.yaml").read_text()
    edit(prepared / "params.yaml", {"ray.storage": str(BASE / "storage" / request.node.name)})
    yield prepared
    (prepared / "params.yaml").write_text(text)


def checkpoints(workspace: Path) -> list[Path]:
    """Those that Ray knows of the training in the storage path, the latest last."""
    storage = Path(load_settings(workspace / "params.yaml").ray.storage)
    try:
        (listed,) = storage.glob("train-*/checkpoint_manager_snapshot.json")
        known = json.loads(listed.read_text())["checkpoint_results"]
    except ValueError:  # there is no list yet, or it is just being written
        return []
    return [listed.parent / each["checkpoint_dir_name"] for each in known]


def assert_same(workspace: Path, expected: Trainer) -> None:
    """The last checkpoint is that of the undisturbed training."""
    latest = checkpoints(workspace)[-1]
    history = json.loads((latest / "progress.json").read_text())["history"]
    assert [line["epoch"] for line in history] == list(range(1, EPOCHS + 1))
    for line, other in zip(history, expected.history, strict=True):
        assert line == pytest.approx(other, abs=AGREEMENT)
    tensors = load_file(latest / "state.safetensors")
    for name, parameter in expected.detector.named_parameters():
        if parameter.requires_grad:
            np.testing.assert_allclose(tensors[f"now.{name}"], parameter.detach().numpy(), atol=AGREEMENT)


def wait_for_checkpoint(job: Job, workspace: Path) -> None:
    """Until the training is under way, and not near its end."""
    wait_for("a checkpoint", lambda: checkpoints(workspace) or job.info.status.is_terminal(), pause=0.1)
    assert not job.info.status.is_terminal(), job.logs
