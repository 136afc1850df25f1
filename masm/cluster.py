"""Ray, as far as the stages share it: connecting, and the name of work in progress."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from pyarrow.fs import FileSystem, FileType
from ray.exceptions import RayTaskError

from masm.data.ingest import AHEAD, Jobs, write_part
from masm.data.rows import Outcome, Task
from masm.data.versions import code_digest, digests
from masm.errors import UserError
from masm.settings import Ray, Settings, fingerprint

PACKAGE = Path(__file__).parent
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


def run_jobs(jobs: Jobs) -> Iterator[None]:
    """Run ingest's tasks on the connected cluster; one item for each that is done.

    The nodes open the raw files at the same paths as this machine, which alone writes the parts.

    Raises:
        UserError: as the tasks do.
    """
    run = ray.remote(_run_task)
    running: dict[ray.ObjectRef, Path] = {}
    limit = AHEAD * int(ray.cluster_resources()["CPU"])
    for task, part in jobs:
        running[run.remote(task)] = part
        if len(running) >= limit:
            _finish_one(running)
            yield
    while running:
        _finish_one(running)
        yield


def _run_task(task: Task) -> Outcome:
    return task.run()


def _finish_one(running: dict[ray.ObjectRef, Path]) -> None:
    """Write the part of the task that is done first."""
    (done,), _ = ray.wait(list(running))
    try:
        write_part(running.pop(done), ray.get(done))
    except RayTaskError as error:
        raise error.cause from None


def work_name(stage: str, settings: Settings, *parts: object) -> str:
    """The name of a stage's work in progress: another one whenever settings, data or code differ.

    Ray resumes whatever it finds under a name, so that a name must never be used for other work.
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
