"""Work that is shared out on the connected cluster: tasks, and workers that keep a state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import ActorPool

from masm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
State = TypeVar("State")

AHEAD = 4
"""Items in hand for each CPU: enough that none waits, few enough to stay small."""
RESTARTS = 3
"""Times that a lost worker is started again."""


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


def run_on_actors(
    run: Callable[[State, Item], Result], state: State, items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Run a function on the connected cluster by workers that keep a state, such as a model, which is sent once.

    Each worker has one CPU, and one GPU where the cluster has as many. One that is lost is started again, and does
    its item again.

    Yields:
        Each item with its result, in the order in which they are done.

    Raises:
        Exception: what `run` raised.
        UserError: a worker was lost more often than RESTARTS times.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0) >= workers)
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    actor = ray.remote(**options)(_Worker)
    kept = [ray.put(state)]  # in a list it goes to the worker as a reference, which this one holds until the end
    pool = ActorPool([actor.remote(run, kept) for _ in range(min(workers, len(items)))])
    try:
        yield from pool.map_unordered(lambda worker, item: worker.run.remote(item), items)
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise UserError(
            f"a worker was lost {1 + RESTARTS} times, as where memory runs out ({str(error).splitlines()[0]}): lower "
            "evaluate.workers or evaluate.batch_size."
        ) from None


class _Worker(Generic[State, Item, Result]):
    """A process of the cluster with a state of its own."""

    def __init__(self, run: Callable[[State, Item], Result], kept: Sequence[ray.ObjectRef]) -> None:
        self._run, self._state = run, ray.get(kept[0])

    def run(self, item: Item) -> tuple[Item, Result]:
        """The item with its result."""
        return item, self._run(self._state, item)


def _first_done(running: dict[ray.ObjectRef, Item]) -> tuple[Item, Any]:
    (done,), _ = ray.wait(list(running))
    try:
        return running.pop(done), ray.get(done)
    except RayTaskError as error:
        raise error.cause from None
