"""Shared images when the node that decoded them is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from masm.data.frames import load_frames
from masm.data.stored import decode
from masm.data.table import write_table
from pipelines.shared_images import share, shared
from tests.data.tables import png, row

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that runs no task, and one node that does."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    try:
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def test_lost_images_are_decoded_again(cluster: Cluster, tmp_path: Path) -> None:
    rows = [
        row("a", method, f"{video}", 0, png(video, side=128)) for video in range(30) for method in ("real", "swap")
    ]
    write_table(tmp_path / "a", rows, [])
    frames = load_frames([tmp_path / "a"], "train")
    node = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes(timeout=300)
    (seen,) = share([frames], fetch=lambda: None)
    assert shared(seen)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes(timeout=300)
    assert torch.equal(decode(seen.images), decode(frames.images))
    assert np.array_equal(seen.labels, frames.labels)
