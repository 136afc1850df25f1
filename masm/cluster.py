"""A Ray cluster: joining it, what room it has, and what is said while it lacks some."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import psutil
import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError, RayError

from masm.console import STDERR
from masm.errors import UserError
from masm.settings import Ray

CONNECT_SECONDS = 10.0
"""That the head of a cluster may take to answer."""
WATCH_SECONDS = 5.0
"""Between looks at the nodes of a cluster while a stage runs on it."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Of a Ray started in the process: enough for the frames of the demo, small enough for a laptop."""
TOO_SLOW = "timed out during startup"
"""Part of what Ray says where it was not up in the 30 s that it gives itself."""
IN_PROCESS = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""Environment of a Ray started in the process, which has no dashboard and one node.

Ray Train asks the dashboard whether its controller lives. Without an address it would look for one, for which a run
waits 12 s at its end; and the cluster that takes jobs, whose address the environment may hold, knows no such
controller, which Ray takes for a dead one. So nothing listens there (9 is the port of `discard`). And nobody takes a
node away.
"""


@contextmanager
def connected(settings: Ray, cpus: int, whole_gpus: bool = True) -> Iterator[None]:
    """Ray for the length of a stage: the cluster at the address, or one started in the process.

    While the stage runs on a cluster that loses nodes, a line says what it waits for.

    Args:
        settings: the address, and how long to wait for nodes that the cluster has not yet.
        cpus: workers of one CPU each that the stage needs; a Ray in the process claims as many even where the
            machine has fewer, so that two workers run, slower, on one core.
        whole_gpus: whether a worker without a GPU of its own runs on the CPU, of which a line warns; otherwise
            workers share what there are.

    Raises:
        UserError: no cluster answers at the address, it has another Ray or Python, it refuses the token, or it has
            no room for so many workers.
    """
    # Workers' own words stay in Ray's logs: errors come back with the results, progress by the stages.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if settings.address is None:
            _start(cpus, quiet)
            yield
        else:
            _join(settings.address, quiet)
            _await_room(cpus, settings.wait_seconds, whole_gpus)
            with _watched(cpus):
                yield
    finally:
        ray.shutdown()


def _start(cpus: int, options: dict[str, Any]) -> None:
    """Start a Ray in the process; once more where a busy machine did not bring it up in the 30 s that Ray gives it."""
    own = {"num_cpus": max(cpus, os.cpu_count() or 1), "object_store_memory": OBJECT_STORE_BYTES}
    others = set(psutil.Process().children(recursive=True))
    with _environment(IN_PROCESS):  # Ray's processes inherit it
        try:
            ray.init(address="local", include_dashboard=False, **own, **options)
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
            for process in set(psutil.Process().children(recursive=True)) - others:
                with suppress(psutil.NoSuchProcess):
                    process.kill()  # Ray leaves them to run, beside those of the next
            ray.init(address="local", include_dashboard=False, **own, **options)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _join(address: str, options: dict[str, Any]) -> None:
    """Become a driver of a cluster."""
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"{address} takes jobs, and no stage that runs here: use `masm submit STAGE --address {address}`, or set "
            "RAY_ADDRESS or ray.address to HOST:PORT of the cluster's head (Ray's own port, 6379) on one of its nodes."
        )
    try:
        knock(address)
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise UserError(_why_not_joined(address, error)) from None


def knock(address: str) -> None:
    """Raise an OSError where nothing listens: Ray itself would try for a quarter of an hour.

    Args:
        address: HOST:PORT or a URL; what is neither, such as `auto`, is Ray's to find.
    """
    place = urlsplit(address if "://" in address else f"//{address}")
    port = place.port or {"http": 80, "https": 443}.get(place.scheme)
    if place.hostname and port:
        socket.create_connection((place.hostname, port), timeout=CONNECT_SECONDS).close()


def _why_not_joined(address: str, error: Exception) -> str:
    """What Ray says in several lines, in one sentence."""
    words = str(error)
    if "Version mismatch" in words:
        ray_there, ray_here = re.findall(r"Ray: (\S+)", words)
        python_there, python_here = re.findall(r"Python: (\S+)", words)
        return (
            f"the Ray cluster at {address} runs Ray {ray_there} with Python {python_there}, this is Ray {ray_here} "
            f"with Python {python_here}: start it from this environment, or make this one from its requirements.lock."
        )
    if isinstance(error, AuthenticationError) or "authentication" in words.lower():
        return refused(address)
    return (
        f"no Ray cluster answers at {address} ({first_line(error)}): start it, or unset RAY_ADDRESS and ray.address."
    )


def refused(address: str) -> str:
    """The words for a cluster that asks for a token (Ray's RAY_AUTH_MODE=token)."""
    return (
        f"the Ray cluster at {address} refuses this token, or the lack of one: set RAY_AUTH_MODE=token, and "
        "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's."
    )


def first_line(error: Exception) -> str:
    """Of an error's words: Ray's go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def room(nodes: Iterable[Mapping[str, float]]) -> int:
    """How many workers of one CPU have a place: a node's fraction of a CPU is none, whatever the others have.

    Args:
        nodes: the resources of each node.
    """
    return sum(int(node.get("CPU", 0)) for node in nodes)


def lack(needed: int, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What a cluster has too little of for so many workers, in words; None where it has enough."""
    places, cpus = room(nodes), sum(node.get("CPU", 0) for node in nodes)
    if places >= needed:
        return None
    has = f"{len(nodes)} node(s) with {cpus:g} CPUs" + ("" if cpus == places else f", whole ones on a node: {places}")
    return f"{needed} worker(s) of one CPU each are needed, the Ray cluster has {has}"


def lone_gpus(needed: int, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """A warning where a cluster has GPUs, and too few for each worker to have one."""
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if not 0 < gpus < needed:
        return None
    return f"the Ray cluster has {gpus} GPU(s) for {needed} workers: they run on CPUs; lower their number to {gpus}"


def gpu_share(workers: int, gpus: int) -> float:
    """The part of one GPU that each worker gets, so that all of them have a place.

    A worker is never on two GPUs, and Ray counts in ten-thousandths of one, to the nearest: six of a sixth would be
    more than it has.
    """
    return 10_000 // math.ceil(workers / gpus) / 10_000 if gpus else 0.0


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _await_room(cpus: int, wait_seconds: float, whole_gpus: bool) -> None:
    """Wait for nodes that a cluster adds when it is asked, and say what is missing.

    Raises:
        UserError: the cluster has no room for so many workers when the time is over.
    """
    nodes = _nodes()
    if whole_gpus and (warning := lone_gpus(cpus, nodes)):
        _say(warning)
    if lack(cpus, nodes) and wait_seconds:
        _say(f"{lack(cpus, nodes)}: waiting up to {wait_seconds:g} s for more (ray.wait_seconds)")
        deadline = time.monotonic() + wait_seconds
        try:
            while lack(cpus, nodes) and time.monotonic() < deadline:
                request_resources(bundles=[{"CPU": 1}] * cpus)  # again: a cluster keeps the last of all drivers'
                time.sleep(1)
                nodes = _nodes()
        finally:  # or it outlives its driver
            request_resources(num_cpus=0)
    if missing := lack(cpus, nodes):
        raise UserError(
            f"{missing}: add nodes, lower train.workers, search.concurrent or evaluate.workers, or set "
            "ray.wait_seconds where the cluster adds nodes by itself."
        )
    free = int(ray.available_resources().get("CPU", 0))
    if free < cpus:
        _say(f"waiting for {cpus} CPUs: {free} of {room(nodes)} are free, other work has the rest")


@contextmanager
def _watched(cpus: int) -> Iterator[None]:
    """Say when the cluster loses the room that the stage needs, and when it has it again."""
    ended = Event()

    def watch() -> None:
        short = False
        while not ended.wait(WATCH_SECONDS):
            try:
                missing = lack(cpus, _nodes())
            except RayError as error:
                _say(f"the Ray cluster's head does not answer ({first_line(error)})")
                return
            if missing and not short:
                _say(f"{missing}, as nodes were lost: what they did waits for others")
            elif short and not missing:
                _say("the Ray cluster has room for all workers again")
            short = missing is not None

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(WATCH_SECONDS)  # where the head is gone, it hangs in Ray


def _say(line: str) -> None:
    STDERR.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
