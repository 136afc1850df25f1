"""How commands and stages end: mistakes in one message, without a stack trace, and with their exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from masm.errors import CheckFailed, UserError

STDERR = Console(stderr=True)
"""What shows progress: bars of one console may stand below each other."""


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
