"""Ray Train, as far as the stages share it: a group of workers, followed by a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer, prepare_model
from ray.util.queue import Queue
from rich.console import Console
from rich.progress import Progress, TaskID

from masm.errors import UserError


@dataclass(frozen=True)
class Group:
    """A group of workers.

    Attributes:
        name: of the work in progress; Ray resumes what it finds under it.
        storage: where checkpoints go.
        workers: how many.
        max_failures: lost workers that are replaced before the run is given up.
    """

    name: str
    storage: str
    workers: int
    max_failures: int


@dataclass(frozen=True)
class Reporter:
    """Tells the stage, wherever it runs, how many steps are done."""

    queue: Queue
    epoch: int

    def __call__(self, step: int, steps: int) -> None:
        """Send the number of steps done since the start."""
        self.queue.put(self.epoch * steps + step)


def replicate(model: torch.nn.Module) -> torch.nn.Module:
    """Average gradients over the group."""
    # Buffers are alike everywhere, frozen weights among them: sending them in every step is waste.
    return prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})


def run_workers(
    worker: Callable[[dict[str, Any]], None], config: dict[str, Any], group: Group, label: str, steps: int
) -> ray.train.Result:
    """Run the workers; Ray replaces one that is lost, and goes on from the last checkpoint.

    Args:
        worker: called in each worker with `config` and the `queue` of its progress.
        config: what it needs.
        group: who runs it.
        label: of the progress bar.
        steps: in all.

    Raises:
        UserError: the mistake that a worker found.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    with _progress(label, steps) as queue:
        trainer = TorchTrainer(
            worker,
            train_loop_config={**config, "queue": queue},
            scaling_config=ScalingConfig(num_workers=group.workers, use_gpu=gpus >= group.workers),
            run_config=RunConfig(
                name=group.name,
                storage_path=group.storage,
                failure_config=FailureConfig(max_failures=group.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            return trainer.fit()
        except WorkerGroupError as error:
            for failure in error.worker_failures.values():
                if isinstance(failure, UserError):
                    raise failure from None
            raise


@contextmanager
def _progress(label: str, steps: int) -> Iterator[Queue]:
    """A progress bar that follows a queue of step numbers."""
    queue = Queue(actor_options={"num_cpus": 0})

    def follow(bar: Progress, task: TaskID) -> None:
        with suppress(RayActorError):
            while (step := queue.get()) is not None:
                bar.update(task, completed=step)

    with Progress(console=Console(stderr=True)) as bar:
        follower = Thread(target=follow, args=(bar, bar.add_task(label, total=steps)), daemon=True)
        follower.start()
        try:
            yield queue
        finally:
            with suppress(RayActorError):  # where Ray itself is gone, that is the error to show
                queue.put(None)
                follower.join()
