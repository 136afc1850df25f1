"""Ways of doing a thing, timed by turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping


def by_turns(ways: Mapping[str, Callable[[], None]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Minimum and median seconds of each way over the rounds, after one that warms up."""
    times = defaultdict(list)
    for _ in range(rounds + 1):
        for name, way in ways.items():
            before = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - before)
    kept = {name: own[1:] for name, own in times.items()}
    medians = {name: statistics.median(own) for name, own in kept.items()}
    return {name: min(own) for name, own in kept.items()}, medians
