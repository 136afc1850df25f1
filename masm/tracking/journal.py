"""The journal: JSON lines in the order in which things happened.

`{"start": KEY, "name", "params", "tags", "parent"}`, `{"log": KEY, "metrics", "step"}`,
`{"keep": KEY, "name", "text"}` and `{"finish": KEY, "status", "tags"}`, each with `time` in milliseconds since 1970.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


def journal_path(root: Path, name: str) -> Path:
    """Where a stage keeps the journal of the work of this name (`masm.data.versions.work_name`)."""
    return root / "data" / "work" / "tracking" / f"{name}.jsonl"


def lock_path(journal: Path) -> Path:
    """The file beside a journal by which its writers and senders hold each other back."""
    return journal.with_name(".lock")


def unsent(*roots: Path) -> list[Path]:
    """The journals of a workspace, and of its jobs, that are not, or not all, in MLflow yet."""
    return sorted(path for root in roots for path in journal_path(root, "").parent.glob("*.jsonl"))


class Journal:
    """The writing end; what a killed process left of a line is ended, and counts for nothing.

    Where another stage's sender has the journal, and removes it when it is sent, a new one is begun.

    Attributes:
        descriptor: of the file at first. Its lock, which a sender that is started with it shares, says that the
            journal has a stage: others leave it alone. The sender of a stage that was killed, or of another one that
            found the journal without a stage, may hold it still.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: deque[bytes] = deque()
        with alone(path):
            self._open()
            self.descriptor = self._file.fileno()
            lock(self.descriptor)

    def write(self, **entry: Any) -> None:
        """Append a line, after those that could not be written before.

        Raises:
            OSError: it cannot be written, as where there is no room; the next call tries again.
        """
        text = json.dumps({**entry, "time": int(time.time() * 1000)})
        self._waiting.append(f"{text}\n".encode())
        with alone(self._path):
            if os.fstat(self._file.fileno()).st_nlink == 0:
                self._file.close()
                self._open()  # without its lock, which our sender will take
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()

    def _append(self, line: bytes) -> None:
        """All of a line, or nothing of it."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        if self._file.tell() and not _ends_a_line(self._path):
            self._file.write(b"\n")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold back, for a moment, whoever writes to a journal or removes it; so no line comes into a removed one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path(path).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock(descriptor: int) -> bool:
    """Take a journal for oneself, and for processes that have the descriptor from here; False where it is taken."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_entries(path: Path, start: int) -> Iterator[tuple[Entry | None, int]]:
    """The lines from byte `start` on that are whole, each with the byte at which the next begins.

    A line that was cut by a kill is None. A journal that is gone has none.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield _parse(line), start


def _parse(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
