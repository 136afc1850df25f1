"""The storage path runs full while a job trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from masm.training import Trainer
from tests.cluster.conftest import assert_same, checkpoints
from tests.cluster.machines import ROOM, SMALL, permitted, resize
from tests.cluster.ray_cluster import Cluster
from tests.pipeline.workspace import edit

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def small(workspace: Path, undisturbed: Trainer, tmp_path: Path) -> Iterator[Path]:
    """A workspace whose storage path has room for two checkpoints and a half."""
    if not permitted():
        pytest.skip("a file system of a given size is mounted by root alone")
    undisturbed.save(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    resize(int(2.5 * size))
    edit(workspace / "params.yaml", {"ray.storage": str(SMALL), "train.max_failures": 1})
    yield workspace
    resize(ROOM)


def test_it_stops_in_words_and_goes_on_when_there_is_room(cluster: Cluster, small: Path, undisturbed: Trainer) -> None:
    job = cluster.submit("train", small)
    assert job.wait() == "FAILED", job.logs
    assert job.info.driver_exit_code == 2
    assert f"the storage path {SMALL} is full (No space left on device)" in job.logs
    assert "Traceback" not in job.logs
    whole = checkpoints(small)[-1]
    assert json.loads((whole / "progress.json").read_text())["epoch"] == 2
    assert load_file(whole / "state.safetensors")

    resize(ROOM)
    again = cluster.submit("train", small)
    assert again.wait() == "SUCCEEDED", again.logs
    assert_same(small, undisturbed)
