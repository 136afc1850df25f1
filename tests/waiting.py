"""Waiting for what other processes do."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")


def wait_for(
    what: str,
    done: Callable[[], Found],
    seconds: float = 300,
    pause: float = 0.2,
    process: subprocess.Popen[Any] | None = None,
) -> Found:
    """What `done` says once it says something; the test fails where time is over, or the process that does it ends."""
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert process is None or process.poll() is None, f"the process ended before: {what}"
        assert time.monotonic() < deadline, f"{seconds:g} s were not enough for: {what}"
        time.sleep(pause)
    return found


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
