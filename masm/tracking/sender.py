"""The sender: makes MLflow's runs what a journal says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from masm.tracking.journal import Entry, alone, lock, read_entries
from masm.tracking.recorder import say
from masm.tracking.store import KEY, Experiment


@dataclass
class _Known:
    """What a run of MLflow has, and when it ended the last time, in milliseconds since 1970."""

    id: str
    ended: int = 0
    params: set[str] = field(default_factory=set)
    points: set[tuple[str, int]] = field(default_factory=set)


class Sender:
    """Sends one journal.

    Args:
        journal: the file.
        descriptor: that of its writer, where this is its stage's sender.

    Attributes:
        journal: the file.
        refused: MLflow took offence at it, or its files cannot be used, so that it is not sent any further.
        whole: all that was there at the last look is in MLflow.
    """

    def __init__(self, journal: Path, descriptor: int | None = None) -> None:
        self.journal = journal
        self.refused = self.whole = False
        self._descriptor = descriptor
        self._sent = 0  # bytes
        self._runs: dict[str, _Known] = {}

    def send(self, experiment: Experiment) -> None:
        """Send all that is there; after an error of MLflow's, the next call goes on with the same line.

        Nothing is sent, and `whole` stays False, where another stage or sender has the journal: two would make its
        runs twice. One that another has removed is sent.
        """
        self.whole = not self.journal.exists()
        if not self._lock():
            return
        for entry, end in read_entries(self.journal, self._sent):
            if entry is not None:
                self._apply(experiment, entry)
            self._sent = end
        self.whole = True

    def close(self) -> None:
        """Let another process send it."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the journal, if no stage has gone on with it since all of it was sent."""
        with alone(self.journal):
            if self._lock() and next(read_entries(self.journal, self._sent), None) is None:
                self.journal.unlink()

    def _lock(self) -> bool:
        """Whether the journal is this sender's; one that is gone is nobody's."""
        if self._descriptor is not None and _is_gone(self._descriptor):
            os.close(self._descriptor)
            self._descriptor, self._sent = None, 0
        if self._descriptor is None:
            with suppress(FileNotFoundError):
                self._descriptor = os.open(self.journal, os.O_RDWR)  # NFS locks what is open for writing alone
        return self._descriptor is not None and lock(self._descriptor) and not _is_gone(self._descriptor)

    def unfinished(self) -> list[str]:
        """Keys of the runs that were started and have not ended."""
        running: dict[str, None] = {}
        for entry, _ in read_entries(self.journal, 0):
            if entry is not None and "start" in entry:
                running[entry["start"]] = None
            elif entry is not None and "finish" in entry:
                running.pop(entry["finish"], None)
        return list(running)

    def _apply(self, experiment: Experiment, entry: Entry) -> None:
        if "start" in entry:
            self._start(experiment, entry)
        elif "log" in entry:
            self._log(experiment.client, self._run(experiment, entry["log"]), entry)
        elif "keep" in entry:
            experiment.client.log_text(self._run(experiment, entry["keep"]).id, entry["text"], entry["name"])
        elif "finish" in entry:
            self._finish(experiment.client, self._run(experiment, entry["finish"]), entry)

    def _start(self, experiment: Experiment, entry: Entry) -> None:
        key, client = entry["start"], experiment.client
        first = key not in self._runs
        if (run := self._runs.get(key) or self._found(experiment, key)) is None:
            tags = {**entry["tags"], KEY: key}
            if entry["parent"] is not None:
                tags[MLFLOW_PARENT_RUN_ID] = self._run(experiment, entry["parent"]).id
            made = client.create_run(experiment.number, entry["time"], tags, entry["name"])
            run = self._runs[key] = _Known(made.info.run_id)
        elif entry["time"] > run.ended:
            client.update_run(run.id, "RUNNING")
        if first and entry["parent"] is None:
            say(f"MLflow run: {experiment.link(run.id)}")
        self._set_params(client, run, entry["params"])

    def _set_params(self, client: MlflowClient, run: _Known, params: Mapping[str, object]) -> None:
        """Those that the run has stay as they are: MLflow changes none."""
        new = [Param(name, str(value)) for name, value in params.items() if name not in run.params]
        for first in range(0, len(new), 100):  # the most that a request may have
            client.log_batch(run.id, params=new[first : first + 100])
        run.params |= params.keys()

    def _log(self, client: MlflowClient, run: _Known, entry: Entry) -> None:
        step = entry["step"]
        new = {name: value for name, value in entry["metrics"].items() if (name, step) not in run.points}
        if new:
            client.log_batch(run.id, [Metric(name, value, entry["time"], step) for name, value in new.items()])
            run.points |= {(name, step) for name in new}

    def _finish(self, client: MlflowClient, run: _Known, entry: Entry) -> None:
        """An old journal does not undo a newer end."""
        if entry["time"] >= run.ended:
            for name, value in entry.get("tags", {}).items():
                client.set_tag(run.id, name, value)
            client.set_terminated(run.id, entry["status"], entry["time"])

    def _run(self, experiment: Experiment, key: str) -> _Known:
        """The run of a key that was started before, be it by an earlier journal."""
        run = self._runs.get(key) or self._found(experiment, key)
        if run is None:
            raise MlflowException(f"its run {key} is gone", RESOURCE_DOES_NOT_EXIST)
        return run

    def _found(self, experiment: Experiment, key: str) -> _Known | None:
        """What MLflow has of a key; it is asked once."""
        if (run := experiment.find(key)) is None:
            return None
        histories = [experiment.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics]
        points = {(point.key, point.step) for history in histories for point in history}
        self._runs[key] = _Known(run.info.run_id, run.info.end_time or 0, set(run.data.params), points)
        return self._runs[key]


def _is_gone(descriptor: int) -> bool:
    """Whether another has removed the file, perhaps while its lock was waited for."""
    return os.fstat(descriptor).st_nlink == 0
