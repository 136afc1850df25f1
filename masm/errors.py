"""The two ways in which a command ends on purpose without its result."""

from __future__ import annotations


class UserError(Exception):
    """The user's mistake: one sentence that says what was wrong, where, and what to do (exit code 2)."""


class CheckFailed(Exception):
    """A check of the data did not pass (exit code 1)."""
