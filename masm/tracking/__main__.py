"""The sender's process: `python -m masm.tracking PATIENCE DESCRIPTOR REST JOURNAL...`, which a recorder starts.

The first line of stdin holds the settings, a second one says that the first journal is complete. The end of stdin
without it says that whoever keeps that journal is dead.
"""

from __future__ import annotations

import math
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from masm.settings import Mlflow
from masm.tracking.journal import Journal, lock_path
from masm.tracking.recorder import left, say
from masm.tracking.sender import Sender
from masm.tracking.store import Experiment, address, is_away, open_experiment, reason_of

POLL = 1.0
"""Seconds between looks at the journal, and between attempts while MLflow is away."""


class Outbox:
    """The journals that this process sends; `descriptor` is that of the first one, if it has a stage."""

    def __init__(self, mlflow: Mlflow, journals: Sequence[Path], descriptor: int | None) -> None:
        self._mlflow = mlflow
        self._experiment: Experiment | None = None
        self._away = False
        self.reason: str | None = None
        first, *others = journals
        self._waiting = [Sender(first, descriptor), *map(Sender, others)]
        self.own = self._waiting[0] if descriptor is not None else None

    def send(self) -> bool:
        """Send what is there, and return whether nothing is left that MLflow would take."""
        for sender in list(self._waiting):
            self._try(sender)
            if sender.refused or (sender is not self.own and not self._away):
                self._drop(sender)
        return not self._away and all(sender.whole for sender in self._waiting)

    def _try(self, sender: Sender) -> None:
        """Send a journal, or say what MLflow refuses, and once that it is away."""
        where = address(self._mlflow)
        try:
            self._experiment = self._experiment or open_experiment(self._mlflow)
            with _usable(sender):
                sender.send(self._experiment)
            self._away = False
        except Exception as error:  # noqa: BLE001  # stores of artifacts have errors of their own
            reason, before = reason_of(self._mlflow, error), self._away
            self._away, self.reason = is_away(error), reason
            sender.refused = not self._away
            if sender.refused:
                say(f"MLflow at {where} refuses what is recorded ({reason}): it stays in {sender.journal}")
            elif not before:
                say(f"MLflow at {where} does not answer ({reason}): what is recorded waits in {sender.journal}")

    def _drop(self, sender: Sender) -> None:
        """Be done with a journal: it is sent, refused, or another stage's."""
        if sender.whole and sender is not self.own:
            with _usable(sender):
                sender.remove()
        sender.close()
        self._waiting.remove(sender)


def main() -> None:
    """Send until the stage has ended, and then for its patience."""
    patience, descriptor, rest, *paths = sys.argv[1:]
    stdin = FileIO(0)  # without a buffer, whose content `select` would not see
    settings = Mlflow.model_validate_json(stdin.readline())
    journals = [Path(path) for path in paths]
    outbox = Outbox(settings, journals, int(descriptor) if descriptor != "-" else None)
    deadline, ended, died = math.inf, False, False
    while not ((sent := outbox.send()) and ended) and time.monotonic() < deadline:
        if ended:
            time.sleep(POLL)
        elif select.select([stdin], [], [], POLL)[0]:
            ended, died, deadline = True, not stdin.readline(), time.monotonic() + float(patience)
            if died and outbox.own is not None:
                _mark_killed(outbox.own)
    if not died:  # the journal of a stage that was killed stays: the next one may have begun to write to it
        if outbox.own is not None and outbox.own.whole:
            with _usable(outbox.own):
                outbox.own.remove()
        if not sent:
            say(left(rest, outbox.reason))


@contextmanager
def _usable(sender: Sender) -> Iterator[None]:
    """Say where not MLflow but the journal's own files give an error, as those of another user; it is refused then."""
    try:
        yield
    except OSError as error:
        if str(error.filename) not in map(str, (sender.journal, lock_path(sender.journal))):
            raise
        say(f"the journal {sender.journal} cannot be used ({error.strerror}): it stays")
        sender.refused, sender.whole = True, False


def _mark_killed(sender: Sender) -> None:
    """Write down that who kept the journal is dead, and with it the runs that it had begun."""
    journal = Journal(sender.journal)
    with suppress(OSError):  # without room for it they stay as they are
        for key in reversed(sender.unfinished()):
            journal.write(finish=key, status="KILLED")
    journal.close()


main()
