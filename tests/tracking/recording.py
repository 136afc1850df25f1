"""A stage that records, to be killed: `python -m tests.tracking.recording MLFLOW_URI ROOT EPOCHS SECONDS`."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from masm.settings import Mlflow
from masm.tracking import Recorder, journal_path, recorder

KEY = "train-0123"
GRACE = 120.0
"""In place of the recorder's: on a busy machine the sender's imports take long."""


def mlflow_at(uri: str) -> Mlflow:
    return Mlflow(tracking_uri=uri, artifacts="unused", experiment="tracking", model="unused")


def figures(epoch: int) -> dict[str, float]:
    return {"loss": 1 / epoch, "val_auc": epoch / 100}


def record(uri: str, root: Path, epochs: int, seconds: float) -> None:
    """An epoch in so many seconds; each epoch of a former try is recorded again, as after a lost checkpoint."""
    with Recorder(mlflow_at(uri), journal_path(root, KEY)) as recording:
        recording.start(KEY, "train", {"train": {"lr": 0.1}}, {"stage": "train"})
        for epoch in range(1, epochs + 1):
            time.sleep(seconds)
            recording.log(KEY, figures(epoch), epoch)
        recording.finish(KEY)


def record_without_room(uri: str, root: Path, until: int) -> None:
    """Four epochs; from the second on there is no room for a whole line, until one epoch begins."""
    recorder.GRACE = GRACE
    journal = journal_path(root, KEY)
    with Recorder(mlflow_at(uri), journal) as recording:
        recording.start(KEY, "train", {"train": {"lr": 0.1}}, {"stage": "train"})
        for epoch in range(1, 5):
            if epoch == 2:
                _limit(journal.stat().st_size + 20)
            if epoch == until:
                _limit(resource.RLIM_INFINITY)
            recording.log(KEY, figures(epoch), epoch)
            assert journal.read_bytes().endswith(b"\n")


def _limit(size: int) -> None:
    """Of the files that this process writes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
