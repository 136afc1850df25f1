"""Ray Train, as far as the stages share it: a group of workers, followed by a progress bar."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import ray.train
import torch
from pyarrow.fs import FileSystem, FileType
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    ControllerError,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer, prepare_model
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import TaskID

from masm.console import STDERR, Progress
from masm.errors import UserError
from masm.storage import FULL, discard, held, storage_full

LIST = "checkpoint_manager_snapshot.json"
"""What Ray calls its list of a run's checkpoints."""
PAUSE = 0.2
"""Seconds between two messages of progress."""


@dataclass(frozen=True)
class Group:
    """A group of workers.

    Attributes:
        name: of the work in progress; Ray resumes what it finds under it.
        storage: where checkpoints go.
        workers: how many, or at least and at most how many: then as many as the cluster has room for, and whenever
            that changes the group starts anew from the last checkpoint.
        max_failures: lost workers that are replaced before the run is given up.
    """

    name: str
    storage: str
    workers: int | tuple[int, int]
    max_failures: int


class Reporter:
    """Tells the stage, wherever it runs, how many steps are done: some times a second, since each waits for an answer.

    Args:
        queue: of the progress.
        epoch: the present one, counted from 0.
    """

    def __init__(self, queue: Queue, epoch: int) -> None:
        self._queue, self._epoch = queue, epoch
        self._due = 0.0

    def __call__(self, step: int, steps: int) -> None:
        """Send the number of steps done since the start: where it is time, and after the last step of the epoch."""
        now = time.monotonic()
        if now >= self._due or step == steps:
            self._queue.put(self._epoch * steps + step)
            self._due = now + PAUSE


def replicate(model: torch.nn.Module) -> torch.nn.Module:
    """Average gradients over the group."""
    # Buffers are alike everywhere, frozen weights among them: sending them in every step is waste.
    return prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})


def report(line: dict[str, float], save: Callable[[Path], None]) -> None:
    """End an epoch, or so many steps, on every worker: its figures, with a checkpoint that the first of them writes.

    It goes to the storage path while training goes on. The one before counts until all of it is there, and the run
    does not end before.

    Args:
        line: the figures.
        save: writes the checkpoint into a folder.
    """
    checkpoint = None
    if ray.train.get_context().get_world_rank() == 0:
        folder = Path(tempfile.mkdtemp(prefix="masm-checkpoint-"))  # removed once it is stored
        try:
            save(folder)
        except BaseException:  # a full disk would get one more with every attempt
            shutil.rmtree(folder, ignore_errors=True)
            raise
        checkpoint = Checkpoint.from_directory(folder)
    ray.train.report(line, checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    group: Group,
    label: str,
    steps: int,
    record: Callable[[dict[str, float]], None] = lambda line: None,
) -> ray.train.Result:
    """Run the workers; Ray replaces one that is lost, and goes on from the last checkpoint.

    Args:
        worker: called in each worker with `config` and the `queue` of its progress, which takes the number of steps
            done, and a line of the history after each epoch.
        config: what it needs.
        group: who runs it.
        label: of the progress bar.
        steps: in all.
        record: called here with each line of the history; one that a resumed run repeats comes twice.

    Raises:
        UserError: the mistake that a worker found, or the storage path is full.
    """
    drop_cut(group.storage, group.name)
    gpus = ray.cluster_resources().get("GPU", 0)
    least = group.workers if isinstance(group.workers, int) else group.workers[0]
    with _progress(label, steps, record) as queue:
        trainer = TorchTrainer(
            partial(worker, {**config, "queue": queue}),  # Ray's controller would load a `train_loop_config`
            scaling_config=ScalingConfig(num_workers=group.workers, use_gpu=gpus >= least),
            run_config=RunConfig(
                name=group.name,
                storage_path=group.storage,
                failure_config=FailureConfig(max_failures=group.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            return trainer.fit()
        except (TrainingFailedError, OSError) as error:
            for failure in _causes(error):
                if isinstance(failure, UserError):
                    raise failure from None
                if isinstance(failure, OSError) and failure.errno in FULL:
                    raise UserError(storage_full(group.storage, failure)) from None
            raise


class Resumable(Protocol):
    """A training that checkpoints can be loaded into."""

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to do."""

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""


def load_last(result: ray.train.Result, trainer: Resumable) -> None:
    """Bring a training that workers have finished here.

    Raises:
        UserError: it is not finished: a report that comes in the moment in which its worker ends can be lost in Ray.
    """
    with result.checkpoint.as_directory() as folder:
        trainer.load(Path(folder))
    if not trainer.finished:
        raise UserError("the last checkpoint of the workers was lost: run the stage again, and it is made anew.")


def sole_driver(group: Group) -> AbstractContextManager[None]:
    """Keep other stages off the work in progress of a group; in object storage they do not know of each other.

    Raises:
        UserError: another stage is at this work, as a job may be that nobody follows any more.
    """
    if "://" in group.storage:
        return nullcontext()
    taken = f"another stage is at this work, {group.name}: wait for its end, or stop it (`ray job stop` for a job)."
    return held(f"{group.storage}/.{group.name}.lock", taken)


def discard_run(storage: str, name: str) -> None:
    """Remove a finished run: first its list of checkpoints, so that Ray takes nothing of what a kill would leave."""
    filesystem, path = FileSystem.from_uri(storage)
    if filesystem.get_file_info(f"{path}/{name}/{LIST}").type is not FileType.NotFound:
        filesystem.delete_file(f"{path}/{name}/{LIST}")
    discard(storage, name)


def drop_cut(storage: str, name: str) -> None:
    """Discard a run whose list of checkpoints was cut, which is said.

    Ray writes the list in place: where the storage path was full in that moment, or the process died, it is no JSON
    any more, and Ray would refuse to start for ever.
    """
    filesystem, path = FileSystem.from_uri(storage)
    listed = f"{path}/{name}/{LIST}"
    if filesystem.get_file_info(listed).type is FileType.NotFound:
        return
    with filesystem.open_input_stream(listed) as file:
        content = file.read()
    try:
        json.loads(content)
    except ValueError:
        words = f"the list of the checkpoints, {listed}, was cut while it was written: this begins anew."
        STDERR.print(words, markup=False, highlight=False, soft_wrap=True)
        discard_run(storage, name)


def _causes(error: TrainingFailedError | OSError) -> list[Exception]:
    """What went wrong in the workers, in Ray's controller of them, or before either was there."""
    if isinstance(error, WorkerGroupError):
        return list(error.worker_failures.values())
    return [error.controller_failure if isinstance(error, ControllerError) else error]


@contextmanager
def _progress(label: str, steps: int, record: Callable[[dict[str, float]], None]) -> Iterator[Queue]:
    """A progress bar that follows a queue of step numbers, among which are lines of the history."""
    # Beside the stage itself: on another node it would be lost with it, and every worker that goes on would fail.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def follow(bar: Progress, task: TaskID) -> None:
        with suppress(RayActorError):
            while (told := queue.get()) is not None:
                if isinstance(told, dict):
                    record(told)
                else:
                    bar.update(task, completed=told)

    with Progress() as bar:
        follower = Thread(target=follow, args=(bar, bar.add_task(label, total=steps)), daemon=True)
        follower.start()
        try:
            yield queue
        finally:
            with suppress(RayActorError):  # where Ray itself is gone, that is the error to show
                queue.put(None)
                follower.join()
