"""Training as a job on the cluster, undisturbed and disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from masm.training import Trainer
from tests.cluster.conftest import AGREEMENT, assert_same, wait_for_checkpoint
from tests.cluster.ray_cluster import Cluster, Job
from tests.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_who_has_no_token_is_refused(cluster: Cluster) -> None:
    assert requests.get(f"{cluster.url}/api/jobs/", timeout=10).status_code == 401
    assert requests.get(f"{cluster.url}/api/jobs/", headers=cluster.secret, timeout=10).status_code == 200


def test_a_job_trains_as_one_process_does(trained: Job, prepared: Path, undisturbed: Trainer) -> None:
    assert trained.info.status == "SUCCEEDED", trained.logs
    assert_same(prepared, undisturbed)
    printed = json.loads(trained.logs[trained.logs.index('{\n  "train"') : trained.logs.rindex("}") + 1])["train"]
    assert printed["val_auc"] == pytest.approx(undisturbed.best_auc, abs=AGREEMENT)


def test_a_killed_worker_changes_nothing(cluster: Cluster, workspace: Path, undisturbed: Trainer) -> None:
    job = cluster.submit("train", workspace)
    wait_for_checkpoint(job, workspace)
    former = cluster.workers()
    former[0][1].kill()
    wait_for("new workers", lambda: len(set(cluster.workers()) - set(former)) == len(former))
    assert job.wait() == "SUCCEEDED", job.logs
    assert_same(workspace, undisturbed)


def test_a_lost_node_changes_nothing(cluster: Cluster, workspace: Path, undisturbed: Trainer) -> None:
    job = cluster.submit("train", workspace)
    wait_for_checkpoint(job, workspace)
    lost = next(machine for machine, _ in cluster.workers() if machine.name != "head")
    lost.lose()
    assert job.wait() == "SUCCEEDED", job.logs
    assert_same(workspace, undisturbed)
    assert lost.address not in cluster.alive()


def test_without_room_it_waits_and_says_for_what(cluster: Cluster, workspace: Path, undisturbed: Trainer) -> None:
    job = cluster.submit("train", workspace)
    wait_for_checkpoint(job, workspace)
    for name in ("first", "second"):
        cluster.machines[name].lose()
    wait_for("a word on what is missing", lambda: "the Ray cluster has 1 node(s) with 1 CPUs" in job.logs)
    cluster.complete()
    assert job.wait() == "SUCCEEDED", job.logs
    assert_same(workspace, undisturbed)
