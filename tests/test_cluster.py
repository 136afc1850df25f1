"""A cluster that cannot be used, or that loses a node, is described in a line."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RaySystemError
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from masm import cluster
from masm.cluster import connected, gpu_share, lack, lone_gpus, room
from masm.errors import UserError
from masm.settings import Ray
from tests.waiting import wait_for


def at(address: str | None, wait_seconds: float = 0) -> Ray:
    return Ray(address=address, storage="/nowhere", wait_seconds=wait_seconds)


@pytest.mark.parametrize(
    ("nodes", "places"), [([], 0), ([{"CPU": 2.0}, {"CPU": 1.0}], 3), ([{"CPU": 0.5}, {"CPU": 1.5}, {"GPU": 1}], 1)]
)
def test_a_worker_needs_a_whole_cpu_of_one_node(nodes: list[dict[str, float]], places: int) -> None:
    assert room(nodes) == places
    assert lack(places, nodes) is None
    assert f"{places + 1} worker(s) of one CPU each are needed" in str(lack(places + 1, nodes))


def test_fractions_and_lone_gpus_are_named() -> None:
    halves = [{"CPU": 0.5}, {"CPU": 0.5}]
    assert str(lack(1, halves)).endswith("2 node(s) with 1 CPUs, whole ones on a node: 0")
    assert lone_gpus(2, [{"CPU": 4, "GPU": 1}]) == (
        "the Ray cluster has 1 GPU(s) for 2 workers: they run on CPUs; lower their number to 1"
    )
    assert lone_gpus(2, [{"GPU": 1}, {"GPU": 1}]) is lone_gpus(2, [{"CPU": 2}]) is None


@pytest.mark.parametrize("whole", [True, False])
def test_workers_that_share_gpus_do_not_want_one_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: bool
) -> None:
    monkeypatch.setattr(cluster, "_join", lambda address, options: None)
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"CPU": 2.0, "GPU": 1.0}])
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: {"CPU": 2.0})
    with connected(at("a-cluster:1"), cpus=2, whole_gpus=whole):
        said = capsys.readouterr().err
    assert ("they run on CPUs" in said) == whole


@pytest.mark.parametrize("gpus", range(9))
@pytest.mark.parametrize("workers", range(1, 25))
def test_every_worker_finds_its_part_of_one_gpu(workers: int, gpus: int) -> None:
    share = round(10_000 * gpu_share(workers, gpus))  # as Ray counts
    if not gpus:
        assert share == 0
        return
    on_one = 10_000 // share
    assert on_one * gpus >= workers
    assert (on_one - 1) * gpus < workers  # none is smaller than it has to be


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1 .*Connection refused.*: start it"),
        ("http://127.0.0.1:8265", "takes jobs, .* `masm submit STAGE --address http://127.0.0.1:8265`"),
    ],
)
def test_no_cluster_is_one_sentence_and_quick(address: str, says: str) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=says), connected(at(address), cpus=1):
        pass
    assert time.monotonic() - begun < 5


def test_a_request_for_nodes_ends_with_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "request_resources", lambda **request: asked.append(request))
    monkeypatch.setattr(cluster, "_nodes", lambda: [{"CPU": 0.0}])
    monkeypatch.setattr(cluster.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster._await_room(2, wait_seconds=60, whole_gpus=True)
    assert asked == [{"bundles": [{"CPU": 1}] * 2}, {"num_cpus": 0}]


@pytest.mark.parametrize(("words", "again"), [(f"The current node {cluster.TOO_SLOW}.", True), ("no such", False)])
def test_ray_that_does_not_come_up_in_its_time_gets_a_second_try(
    monkeypatch: pytest.MonkeyPatch, words: str, again: bool
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def begin(**_: object) -> None:
        begun.append(subprocess.Popen(["sleep", "600"]))
        if len(begun) == 1:
            raise Exception(words)  # as Ray does

    monkeypatch.setattr(cluster.ray, "init", begin)
    try:
        with nullcontext() if again else pytest.raises(Exception, match=words), connected(at(None), cpus=1):
            assert begun[0].wait(60) == -signal.SIGKILL  # nothing is left of the first
            assert begun[1].poll() is None
        assert len(begun) == 1 + again
    finally:
        for process in begun:
            process.kill()


def test_a_lost_head_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def lost() -> list[dict[str, float]]:
        raise RaySystemError("GCS is gone")

    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(cluster, "_nodes", lost)
    said = ""

    def words() -> str:
        nonlocal said
        said += capsys.readouterr().err
        return said

    with cluster._watched(2):
        wait_for("the line", lambda: words().endswith("\n"), pause=0.02)
        time.sleep(0.2)
    assert words().count("the Ray cluster's head does not answer (System error: GCS is gone)") == 1
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A head and a second node on this machine, of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
        running.add_node(num_cpus=1, object_store_memory=10**8)
        yield running
        ray.shutdown()
        running.shutdown()


@pytest.mark.slow
@pytest.mark.ray
class TestOnTwoNodes:
    def test_too_few_cpus_are_said_after_the_wait(
        self, two_nodes: Cluster, capsys: pytest.CaptureFixture[str]
    ) -> None:
        says = (
            r"3 worker\(s\) .* are needed, the Ray cluster has 2 node\(s\) with 2 CPUs: add nodes, lower train.workers"
        )
        begun = time.monotonic()
        with pytest.raises(UserError, match=says), connected(at(two_nodes.address, wait_seconds=2), cpus=3):
            pass
        assert time.monotonic() - begun >= 2
        assert "waiting up to 2 s for more (ray.wait_seconds)" in capsys.readouterr().err

    def test_a_lost_node_is_said(
        self, two_nodes: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.2)
        said = ""
        with connected(at(two_nodes.address), cpus=2):
            two_nodes.remove_node(two_nodes.list_all_nodes()[-1])

            def words() -> str:
                nonlocal said
                said += capsys.readouterr().err
                return said

            wait_for("the line", lambda: "as nodes were lost" in words())
        assert (
            "2 worker(s) of one CPU each are needed, the Ray cluster has 1 node(s) with 1 CPUs, as nodes were lost"
            in said
        )

    def test_another_python_is_named(self, two_nodes: Cluster) -> None:
        key = {"key": b"CLUSTER_METADATA", "namespace": b"cluster"}  # what Ray itself compares when a driver comes
        with connected(at(two_nodes.address), cpus=1):
            told = {**json.loads(_internal_kv_get(**key)), "python_version": "3.9.1"}
            _internal_kv_put(value=json.dumps(told).encode(), overwrite=True, **key)
        says = rf"runs Ray {ray.__version__} with Python 3.9.1, this is Ray {ray.__version__} with Python 3\.1\d"
        with pytest.raises(UserError, match=says), connected(at(two_nodes.address), cpus=1):
            pass
