"""Passes of the model over crops of several requests.

Ray Serve's own batches are made up before the model is free: while it computes, what comes in falls into many small
ones. Here a pass takes what has come in by the time at which it begins, and the next one begins at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

import numpy as np

from masm.serving.scorer import Scorer

_Item = tuple[Scorer, np.ndarray, "Future[float]"]


class Batcher:
    """Computes logits in a thread of its own, which ends with the process.

    Args:
        size: crops of a pass, at most.
        wait: seconds that the first crop of a pass waits for others.
        count: told the number of crops of each pass.
    """

    def __init__(self, size: int, wait: float, count: Callable[[int], None]) -> None:
        self._size, self._wait, self._count = size, wait, count
        self._waiting: SimpleQueue[_Item] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def logit(self, scorer: Scorer, crop: np.ndarray) -> Future[float]:
        """The logit of a crop (S, S, 3) uint8 RGB; who does not want it any more cancels it."""
        logit: Future[float] = Future()
        self._waiting.put((scorer, crop, logit))
        return logit

    def _run(self) -> None:
        while True:
            items = self._gather()
            for scorer in {id(scorer): scorer for scorer, _, _ in items}.values():  # during a swap there are two
                self._compute(scorer, [item for item in items if item[0] is scorer])

    def _gather(self) -> list[_Item]:
        items = [self._waiting.get()]
        end = time.monotonic() + self._wait
        while len(items) < self._size:
            try:
                items.append(self._waiting.get(timeout=max(end - time.monotonic(), 0)))
            except Empty:
                break
        return [item for item in items if item[2].set_running_or_notify_cancel()]

    def _compute(self, scorer: Scorer, items: list[_Item]) -> None:
        try:
            logits = scorer.logits(np.stack([crop for _, crop, _ in items])).tolist()
        except Exception as error:  # noqa: BLE001  # it is the requests', and the next pass may do
            for _, _, future in items:
                future.set_exception(error)
            return
        self._count(len(items))
        for (_, _, future), logit in zip(items, logits, strict=True):
            future.set_result(logit)
