"""MLflow's server goes away while a job trains."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.cluster.conftest import checkpoints, wait_for_checkpoint
from tests.cluster.ray_cluster import Cluster
from tests.cluster.services import Database, Tracking
from tests.pipeline.workspace import edit

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

OUTAGE = 30
"""Seconds."""
EPOCHS = 20
POINTS = """
SELECT metrics.step, metrics.value FROM metrics JOIN runs ON runs.run_uuid = metrics.run_uuid
WHERE runs.run_uuid = '{run}' AND runs.status = 'FINISHED' AND metrics.key = '{metric}'
ORDER BY metrics.step, metrics.timestamp
"""


def test_no_epoch_is_lost_or_doubled(
    cluster: Cluster, workspace: Path, tracking: Tracking, database: Database
) -> None:
    edit(workspace / "params.yaml", {"train.epochs": EPOCHS})
    job = cluster.submit("train", workspace)
    wait_for_checkpoint(job, workspace)
    tracking.kill()
    assert not job.info.status.is_terminal()
    time.sleep(OUTAGE)
    tracking.start()
    assert job.wait() == "SUCCEEDED", job.logs
    history = json.loads((checkpoints(workspace)[-1] / "progress.json").read_text())["history"]
    assert len(history) == EPOCHS
    (recorded,) = set(re.findall(r"MLflow run: \S+/runs/(\w+)", job.logs))
    for metric in ("loss", "val_auc"):
        points = database.query("mlflow", POINTS.format(run=recorded, metric=metric))
        assert points == [(line["epoch"], pytest.approx(line[metric])) for line in history]
