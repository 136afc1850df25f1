"""A stage that records, to be killed: `python -m tests.tracking.recording MLFLOW_URI ROOT EPOCHS SECONDS`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from masm.settings import Mlflow
from masm.tracking import Recorder, journal_path

KEY = "train-0123"


def mlflow_at(uri: str) -> Mlflow:
    return Mlflow(tracking_uri=uri, artifacts="unused", experiment="tracking", model="unused")


def figures(epoch: int) -> dict[str, float]:
    return {"loss": 1 / epoch, "val_auc": epoch / 100}


def record(uri: str, root: Path, epochs: int, seconds: float) -> None:
    """An epoch in so many seconds; each epoch of a former try is recorded again, as after a lost checkpoint."""
    with Recorder(mlflow_at(uri), journal_path(root, KEY)) as recorder:
        recorder.start(KEY, "train", {"train": {"lr": 0.1}}, {"stage": "train"})
        for epoch in range(1, epochs + 1):
            time.sleep(seconds)
            recorder.log(KEY, figures(epoch), epoch)
        recorder.finish(KEY)


if __name__ == "__main__":
    record(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
