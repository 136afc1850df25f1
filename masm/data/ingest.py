"""The face table of a dataset: tasks are run in parallel, each leaves a part, and the parts become the table.

Parts lie in data/work/DATASET/HASH, the hash being of all that they depend on: an ingest that was killed takes up
those that are there. The table is written from the parts in the order of the tasks, so that neither the number
of processes nor an interruption changes a byte of it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from masm.data import forged, imported
from masm.data.importers.folder import folder_stamps
from masm.data.profile import crop_profile
from masm.data.rows import Outcome, Task
from masm.data.table import SCHEMA, write_table
from masm.data.versions import code_digest
from masm.errors import CheckFailed, UserError
from masm.settings import ROLE_SPLITS, ForgedDataset, Settings, fingerprint

AHEAD = 4
"""Tasks in hand for each process: enough that none waits, few enough to stay small."""


@dataclass(frozen=True)
class Summary:
    """What an ingest did, for the person who started it.

    Attributes:
        outcomes: "ok" and each kind of failure -> videos.
        frames: rows of the face table.
        failures: rows of its side table.
    """

    outcomes: dict[str, int]
    frames: int
    failures: list[dict[str, Any]]


Jobs = Iterable[tuple[Task, Path]]
"""Tasks, and the parts that they are to leave."""


def run_in_processes(jobs: Jobs) -> Iterator[None]:
    """Run tasks in as many processes as the machine has CPUs; one item for each that is done."""
    jobs = iter(jobs)
    first = list(islice(jobs, os.cpu_count() or 1))
    processes = max(1, len(first))
    context = multiprocessing.get_context("spawn")  # OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        running: set[Future[None]] = set()
        try:
            for task, part in chain(first, jobs):
                running.add(pool.submit(_run, task, part))
                if len(running) >= AHEAD * processes:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            yield from (future.result() for future in running)
        except BrokenProcessPool:
            raise UserError("a process of the ingest was killed, by lack of memory perhaps: run it again.") from None


def ingest(
    settings: Settings,
    dataset: str,
    progress: Callable[[int, int], None],
    run_jobs: Callable[[Jobs], Iterator[None]] = run_in_processes,
) -> Summary:
    """Write the face table of one dataset.

    Args:
        settings: all of params.yaml.
        dataset: a name of its `datasets` section.
        progress: called with photographs or videos done, and with how many there are.
        run_jobs: leaves all parts, and gives an item for each; by processes of this machine where not given.

    Raises:
        UserError: the dataset is unknown, or its settings do not fit together.
        CheckFailed: fewer videos than `checks.coverage` asks for gave a face; the table is there all the same.
    """
    if dataset not in settings.datasets:
        raise UserError(f"params.yaml has no dataset {dataset!r}: it has {', '.join(settings.datasets)}.")
    try:
        return _ingest(settings, dataset, progress, run_jobs)
    except OSError as error:
        if "No space left" not in str(error):  # Arrow gives no errno
            raise
        raise UserError(f"no space is left below {settings.root / 'data'}: free some; what is done is kept.") from None


def _ingest(
    settings: Settings,
    dataset: str,
    progress: Callable[[int, int], None],
    run_jobs: Callable[[Jobs], Iterator[None]],
) -> Summary:
    tasks, count = _tasks(settings, dataset)
    work = _work_folder(settings, dataset)
    work.mkdir(parents=True, exist_ok=True)
    parts = [work / f"{number:08d}.parquet" for number in range(count)]
    done = sum(part.exists() for part in parts)
    progress(done, count)
    missing = ((task, part) for task, part in zip(tasks, parts, strict=True) if not part.exists())
    for _ in run_jobs(missing):
        done += 1
        progress(done, count)
    failures = [failure for part in parts for failure in _failures(part)]
    outcomes = write_table(settings.table(dataset), _rows(parts), failures)
    try:
        if not outcomes.get("ok"):
            reason = f"the first: {failures[0]['reason']}" if failures else "nothing has its role"
            shutil.rmtree(settings.table(dataset))
            raise UserError(f"datasets.{dataset} got no face from {count} photographs or videos; {reason}.")
        _check_coverage(settings, dataset, outcomes, failures)
    except (UserError, CheckFailed):
        _drop_failed(parts)
        raise
    frames = sum(pq.read_metadata(part).num_rows for part in parts)
    shutil.rmtree(work.parent)
    _drop_former_roles(settings, dataset)
    return Summary(outcomes, frames, failures)


def _tasks(settings: Settings, dataset: str) -> tuple[Iterable[Task], int]:
    """The tasks of a dataset in their order, and how many they are."""
    if isinstance(settings.datasets[dataset], ForgedDataset):
        tasks = forged.make_tasks(settings, dataset)
        return tasks, len(tasks)
    return imported.make_tasks(settings, dataset), imported.count_tasks(settings, dataset)


def _work_folder(settings: Settings, dataset: str) -> Path:
    """Another one whenever the parts would be others."""
    profile = crop_profile(settings).hash
    code = code_digest(Path(__file__).parent)
    chosen = settings.datasets[dataset]
    drawn = settings.faces.source == "drawn"
    photographs = [] if drawn or not isinstance(chosen, ForgedDataset) else folder_stamps(settings)
    parts = (settings.seed, settings.faces, settings.crop, profile, chosen, photographs, code)
    return settings.root / "data" / "work" / dataset / fingerprint(*parts)


def _start_worker() -> None:
    """One thread for OpenCV, and no life after a parent that was killed."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _run(task: Task, part: Path) -> None:
    write_part(part, task.run())


def outcome_of(job: tuple[Task, Path]) -> Outcome:
    """Run a task elsewhere, whose part the caller writes."""
    return job[0].run()


def write_part(part: Path, outcome: Outcome) -> None:
    """One file holds rows and failures, so that both are there or none."""
    table = pa.Table.from_pylist(outcome.rows, schema=SCHEMA.with_metadata({"failures": json.dumps(outcome.failures)}))
    partial = part.with_name(f".{part.name}.{os.getpid()}")
    try:
        pq.write_table(table, partial, compression="none")
        partial.replace(part)
    finally:
        partial.unlink(missing_ok=True)


def _rows(parts: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from pq.read_table(part).to_pylist()


def _failures(part: Path) -> list[dict[str, Any]]:
    return json.loads(pq.read_schema(part).metadata[b"failures"])


def _drop_failed(parts: Iterable[Path]) -> None:
    """Let the next ingest try again what failed as a whole: a repaired permission changes neither size nor time."""
    for part in parts:
        if any(failure["frame_index"] is None for failure in _failures(part)):
            part.unlink()


def _drop_former_roles(settings: Settings, dataset: str) -> None:
    """Remove the table that the dataset left when it had another role: DVC, for which it is no output any more, would
    take it for part of what stages with that role depend on. Its cache and remote keep it.
    """
    for role in set(ROLE_SPLITS) - {settings.datasets[dataset].role}:
        if (former := settings.root / "data" / role / dataset).exists():
            shutil.rmtree(former)


def _check_coverage(
    settings: Settings, dataset: str, outcomes: dict[str, int], failures: list[dict[str, Any]]
) -> None:
    videos = sum(outcomes.values())
    if outcomes["ok"] >= settings.checks.coverage * videos:
        return
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if outcome != "ok")
    first = next(failure for failure in failures if failure["frame_index"] is None)
    raise CheckFailed(
        f"datasets.{dataset}: {outcomes['ok']} of {videos} videos gave a face, checks.coverage asks for "
        f"{settings.checks.coverage:.0%}: {kinds}; the first: {first['video_id']}: {first['reason']}. All are in "
        f"{settings.table(dataset) / 'failures.parquet'}."
    )
