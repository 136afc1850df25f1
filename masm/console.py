"""How commands and stages show their progress, and how they end: mistakes in one message, with their exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress
from rich.console import Console

from masm.errors import CheckFailed, UserError

STDERR = Console(stderr=True)
"""What shows progress: bars of one console may stand below each other."""
LINE_SECONDS = 30.0
"""Between lines of progress in a log."""


class Progress(progress.Progress):
    """Progress bars on a terminal; in a log, as of a job, a line now and then: bars show their end alone there.

    Args:
        console: where they are shown; stderr if not given.
    """

    def __init__(self, console: Console = STDERR) -> None:
        super().__init__(console=console)
        self._next_line = time.monotonic() + LINE_SECONDS

    def update(self, task_id: progress.TaskID, **changes: Any) -> None:
        """Tell a task's progress, as rich's does."""
        super().update(task_id, **changes)
        self._log(task_id)

    def advance(self, task_id: progress.TaskID, advance: float = 1) -> None:
        """Add to a task's progress, as rich's does."""
        super().advance(task_id, advance)
        self._log(task_id)

    def _log(self, task_id: progress.TaskID) -> None:
        if not self.console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            (task,) = (task for task in self.tasks if task.id == task_id)
            total = "" if task.total is None else f" of {task.total:g}"
            self.console.print(f"{task.description}: {task.completed:g}{total}", markup=False, highlight=False)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Leave the process with 2 on the user's mistake and with 1 on a failed check, and say what it was."""
    try:
        yield
    except (UserError, CheckFailed) as error:
        mistake = isinstance(error, UserError)
        STDERR.print("error:" if mistake else "check failed:", style="bold red", end=" ")
        STDERR.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if mistake else 1)
