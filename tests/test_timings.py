from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from masm import timings
from masm.timings import measured, read_timings
from tests.waiting import wait_for

CHILD = """
import sys
import time
held = bytearray(80 * 2**20)
held[::4096] = bytes(len(held[::4096]))
until = time.process_time() + 0.7
while time.process_time() < until:
    pass
print(flush=True)
sys.stdin.read()
"""


def test_it_counts_the_processes_that_were_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[None] = []
    look = timings._Watch.look
    monkeypatch.setattr(timings._Watch, "look", lambda watch: looks.append(look(watch)))
    monkeypatch.setattr(timings, "INTERVAL", 0.1)
    with measured(tmp_path / "timings" / "idle.json"):
        pass
    began = time.perf_counter()
    with (
        measured(tmp_path / "timings" / "train.json"),
        subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        assert child.stdout is not None
        child.stdout.readline()
        done = len(looks)
        wait_for("a look that began after it", lambda: len(looks) > done + 1)
    seconds = time.perf_counter() - began
    idle, train = read_timings(tmp_path / "timings").values()
    assert 0.7 < train.seconds <= seconds
    assert 0.7 <= train.cpu_seconds - idle.cpu_seconds < seconds
    assert 80 * 2**20 <= train.peak_memory_bytes - idle.peak_memory_bytes < 160 * 2**20
    assert datetime.fromisoformat(train.finished) <= datetime.now(UTC)


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), measured(tmp_path / "train.json"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())
    assert not read_timings(tmp_path)
