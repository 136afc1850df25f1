"""Ray, as far as the stages share it: connecting, and the name of work in progress."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from pyarrow.fs import FileSystem, FileType
from ray.exceptions import RayTaskError

from masm.data.versions import code_digest, digests
from masm.errors import UserError
from masm.settings import Ray, Settings, fingerprint

Item = TypeVar("Item")
Result = TypeVar("Result")

PACKAGE = Path(__file__).parent
AHEAD = 4
"""Items in hand for each CPU: enough that none waits, few enough to stay small."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Of a Ray started in the process: enough for the frames of the demo, small enough for a laptop."""


@contextmanager
def connected(settings: Ray, cpus: int) -> Iterator[None]:
    """Ray for the length of a stage: the cluster at the address, or one started in the process.

    Args:
        settings: the address.
        cpus: what the stage needs; a Ray in the process claims as many even where the machine has fewer, so
            that two workers run, slower, on one core.

    Raises:
        UserError: no cluster answers at the address, or it has too few CPUs.
    """
    # Workers' own words stay in Ray's logs: errors come back with the results, progress by the stages.
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if settings.address is None:
            ray.init(
                address="local",
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=settings.address, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {settings.address} ({error}): start it, or unset RAY_ADDRESS and ray.address."
        ) from None
    try:
        available = ray.cluster_resources().get("CPU", 0)
        if available < cpus:
            raise UserError(
                f"the stage needs {cpus} CPUs, the Ray cluster has {available:g}: add nodes, or lower train.workers "
                "or search.concurrent."
            )
        yield
    finally:
        ray.shutdown()


def run_remotely(run: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Run a function on the connected cluster, a few items ahead for each CPU.

    Yields:
        Each item with its result, in the order in which they are done.

    Raises:
        Exception: what `run` raised.
    """
    remote = ray.remote(run)
    running: dict[ray.ObjectRef, Item] = {}
    limit = AHEAD * int(ray.cluster_resources()["CPU"])
    for item in items:
        running[remote.remote(item)] = item
        if len(running) >= limit:
            yield _first_done(running)
    while running:
        yield _first_done(running)


def _first_done(running: dict[ray.ObjectRef, Item]) -> tuple[Item, Any]:
    (done,), _ = ray.wait(list(running))
    try:
        return running.pop(done), ray.get(done)
    except RayTaskError as error:
        raise error.cause from None


def work_name(stage: str, settings: Settings, *parts: object) -> str:
    """The name of a stage's work in progress: another one whenever settings, data or code differ, or any of `parts`.

    Ray resumes whatever it finds under a name, so that a name must never be used for other work: what a stage reads
    beside the face tables, the backbone's weights above all, goes into `parts`.
    """
    data = list(digests(settings).values())
    return (
        f"{stage}-{fingerprint(settings.seed, settings.crop, settings.backbone, data, code_digest(PACKAGE), *parts)}"
    )


def discard(storage: str, name: str) -> None:
    """Remove finished work from the storage path; what is not there is no fault."""
    filesystem, path = FileSystem.from_uri(storage)
    if filesystem.get_file_info(f"{path}/{name}").type is not FileType.NotFound:
        filesystem.delete_dir(f"{path}/{name}")
