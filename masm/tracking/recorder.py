"""The stage's end of the tracking: what it calls while it works."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from masm.data.versions import in_checkout
from masm.settings import Mlflow, Settings, fingerprint
from masm.tracking.journal import Journal, journal_path, unsent

PATIENCE = 60.0
"""Seconds that a stage waits in the end for what is not in MLflow yet."""
LAST_PATIENCE = 600.0
"""The same where the journal is lost afterwards."""
GRACE = 15.0
"""Seconds beyond the patience after which a sender that a server holds up is ended."""
IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of the sender, which tries again by itself, where MLflow alone would for minutes. Its own reports of its
use would hold up the end where nothing outside can be reached."""


class Recorder:
    """Records runs for MLflow without ever waiting for it; a context manager.

    Runs have keys: the same key is the same run of MLflow, also after a restart, and whatever is recorded twice, such
    as an epoch that a resumed training repeats, is there once. Where the server is away, all waits in the journal, and
    is sent when it is back, by the next recorder of the same folder, or by `send_unsent`.

    Attributes:
        mlflow: where the runs go.
        journal: of `journal_path`.
        patience: seconds that `close` waits for the rest.
        lasts: whether the journal outlives the process; where it does not, what is said of the rest is another thing.
    """

    def __init__(self, mlflow: Mlflow, journal: Path, patience: float = PATIENCE, lasts: bool = True) -> None:
        self.mlflow, self.journal, self.patience, self.lasts = mlflow, journal, patience, lasts
        self._running: dict[str, None] = {}
        self._hindered = False

    def __enter__(self) -> Recorder:
        self._journal = Journal(self.journal)
        others = sorted({*self.journal.parent.glob("*.jsonl")} - {self.journal})
        self._rest = rest_of(self.journal, self.lasts)
        journals, descriptor = [self.journal, *others], self._journal.descriptor
        self._sender = _launch(self.mlflow, journals, self.patience, self._rest, descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED"
        for key in reversed(list(self._running)):
            self.finish(key, status)
        self.close()

    def start(
        self, key: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None = None
    ) -> None:
        """Begin a run, or go on with the one that has this key.

        Args:
            key: of the run, unique in the experiment; it becomes tag `masm.key`.
            name: that MLflow shows.
            params: a tree of settings; it is recorded as `section.key`.
            tags: further ones.
            parent: key of the run that this one is shown below.
        """
        self._running[key] = None
        self._record(start=key, name=name, params=flatten(params), tags=dict(tags), parent=parent)

    def log(self, key: str, metrics: Mapping[str, float], step: int) -> None:
        """Record figures of a step; undefined ones (NaN) are left out."""
        defined = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._record(log=key, metrics=defined, step=step)

    def keep(self, key: str, name: str, text: str) -> None:
        """Record a text file, such as a table, under its name."""
        self._record(keep=key, name=name, text=text)

    def finish(self, key: str, status: str = "FINISHED", tags: Mapping[str, str] | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED; `tags` say what came of it."""
        self._running.pop(key, None)
        self._record(finish=key, status=status, tags=dict(tags or {}))

    def _record(self, **entry: Any) -> None:
        """Append to the journal. Where that cannot be, as on a full disk, it is said once, and the stage goes on."""
        try:
            self._journal.write(**entry)
        except OSError as error:
            if not self._hindered:
                say(
                    f"the journal {self.journal} cannot be written ({error.strerror}): free some space there; what is "
                    "recorded waits until then, and after the stage's end until it is run again."
                )
            self._hindered = True

    def close(self) -> None:
        """Wait for the rest, at most `patience` seconds; the sender says it where some is left."""
        self._journal.close()
        _wait(self._sender, self.patience, self._rest)


def stage_recorder(settings: Settings, name: str) -> Recorder:
    """The recorder of a stage's work of this name (`masm.data.versions.work_name`).

    A job's folder is lost with it: its journal is in `ray.storage`, where that is a folder, and is sent by the next
    job or by `promote`. Where it is none, the stage waits longer for MLflow.
    """
    here, *of_jobs = journal_roots(settings)
    if lasting := [here] if in_checkout(here) else of_jobs:
        return Recorder(settings.mlflow, journal_path(lasting[0], name))
    return Recorder(settings.mlflow, journal_path(here, name), LAST_PATIENCE, lasts=False)


def journal_roots(settings: Settings) -> list[Path]:
    """The workspace, and the folder that its jobs leave journals in, where `ray.storage` can have it."""
    storage, experiment = settings.ray.storage, fingerprint(settings.mlflow.experiment)
    return [settings.root, *([] if "://" in storage else [Path(storage, "journals", experiment)])]


def send_unsent(mlflow: Mlflow, *roots: Path, patience: float = PATIENCE) -> None:
    """Send what former stages could not, from a workspace and its jobs; what is left after `patience` s is said."""
    if journals := unsent(*roots):
        rest = rest_of(journals[0], lasts=True)
        _wait(_launch(mlflow, journals, patience, rest), patience, rest)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def say(text: str) -> None:
    """A line on stderr, where a progress bar may stand."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{clear}{text}\n")
    sys.stderr.flush()


def _launch(
    mlflow: Mlflow, journals: Sequence[Path], patience: float, rest: str, descriptor: int | None = None
) -> subprocess.Popen[bytes]:
    """A process of its own: a server that hangs holds up nothing else, and it outlives a stage that is killed.

    `rest` is said of what it could not send; `descriptor` is that of the first journal, where it has a stage.
    """
    own = "-" if descriptor is None else str(descriptor)
    command = [sys.executable, "-m", "masm.tracking", str(patience), own, rest, *map(str, journals)]
    sender = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**IMPATIENT, **os.environ},
        pass_fds=[] if descriptor is None else [descriptor],
        start_new_session=True,  # Ctrl-C is for the stage, which ends the sender in its own time
    )
    assert sender.stdin is not None
    with suppress(BrokenPipeError):
        sender.stdin.write(f"{mlflow.model_dump_json()}\n".encode())  # an address may hold a password
        sender.stdin.flush()
    return sender


def _wait(sender: subprocess.Popen[bytes], patience: float, rest: str) -> None:
    assert sender.stdin is not None
    with suppress(BrokenPipeError):
        sender.stdin.write(b"close\n")
        sender.stdin.close()
    try:
        done = sender.wait(patience + GRACE) == 0  # it says itself what it could not send; where it was killed, nobody
    except subprocess.TimeoutExpired:
        sender.kill()
        sender.wait()
        done = False
    if not done:
        say(left(rest, None))


def rest_of(journal: Path, lasts: bool) -> str:
    """What becomes of that part of a journal which could not be sent."""
    if lasts:
        return f"the next run, or `promote`, sends the rest, from {journal}"
    return f"the rest is lost with this job's folder, {journal}, and is in the stage's result alone"


def left(rest: str, reason: str | None) -> str:
    """What is said of journals that are not all in MLflow, and of the last error that was met."""
    why = f" ({reason})" if reason else ""
    return f"Not all that was recorded is in MLflow{why}: {rest}"
