"""What a stage cost: its time, its processors' time and its memory, with those of the processes that it starts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import psutil

from masm.files import write_text

INTERVAL = 1.0
"""Seconds from one look at the processes to the next; what a shorter-lived one needs is not seen."""


@dataclass(frozen=True)
class Timing:
    """What a stage cost on the machine where it ran; the nodes of a cluster are not counted.

    Attributes:
        seconds: of the clock.
        cpu_seconds: of all processes and threads, each since its start.
        peak_memory_bytes: resident memory of all processes together, memory that they share counted once.
        finished: when, ISO 8601, UTC.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    finished: str


@contextmanager
def measured(path: Path) -> Iterator[None]:
    """Write what the block costs to `path` as JSON, if it comes to its end."""
    watch, done = _Watch(), Event()
    follower = Thread(target=watch.follow, args=(done,), daemon=True)
    began = time.perf_counter()
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    timing = Timing(time.perf_counter() - began, sum(watch.cpu.values()), watch.peak, finished)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(timing), indent=1) + "\n")


class _Watch:
    """Processor seconds by process (its number and its start), and the most memory that was seen."""

    def __init__(self) -> None:
        self.cpu: dict[tuple[int, float], float] = {}
        self.peak = 0

    def follow(self, done: Event) -> None:
        """Look at this process and its descendants until the event is set, and once more."""
        while not done.wait(INTERVAL):
            self.look()
        self.look()

    def look(self) -> None:
        """Look once."""
        here = psutil.Process()
        own, shared = 0, 0
        for process in (here, *here.children(recursive=True)):
            with suppress(psutil.Error), process.oneshot():  # it may have ended meanwhile
                times, memory = process.cpu_times(), process.memory_info()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
                common = getattr(memory, "shared", 0)  # Linux alone tells it
                own, shared = own + memory.rss - common, max(shared, common)
        self.peak = max(self.peak, own + shared)


def read_timings(folder: Path) -> Mapping[str, Timing]:
    """What `measured` wrote, by the names of the files, in the order in which the stages finished."""
    found = {path.stem: Timing(**json.loads(path.read_text())) for path in folder.glob("*.json")}
    return dict(sorted(found.items(), key=lambda item: item[1].finished))
