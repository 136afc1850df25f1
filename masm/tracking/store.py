"""MLflow's store: the experiment that runs go to, its address, and what its errors mean."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE, ErrorCode

from masm.settings import Mlflow, without_secrets

KEY = "masm.key"
"""The tag that holds a run's key."""
NO_ANSWER = tuple(map(ErrorCode.Name, (INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE)))


@dataclass(frozen=True)
class Experiment:
    """Where runs go: MLflow, and the experiment's number in it."""

    client: MlflowClient
    number: str

    def find(self, key: str) -> Run | None:
        """The run of a key; the oldest, should a server have made two of a request that it answered too late."""
        condition = f"tags.`{KEY}` = '{key}'"
        found = self.client.search_runs([self.number], condition, order_by=["attributes.start_time ASC"])
        return found[0] if found else None

    def link(self, run_id: str) -> str:
        """Where a browser finds a run; its identifier where there is no server."""
        place = urlsplit(self.client.tracking_uri)
        if not place.scheme.startswith("http"):
            return run_id
        server = f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path.rstrip('/')}"
        return f"{server}/#/experiments/{self.number}/runs/{run_id}"


def open_experiment(settings: Mlflow) -> Experiment:
    """The experiment of the settings; it, and the database, are made where they are missing.

    Raises:
        MlflowException: the store does not answer, or refuses it.
        SQLAlchemyError: the database cannot be opened.
    """
    for noisy in ("alembic", "mlflow"):  # a fresh database reports each of its migrations
        logging.getLogger(noisy).setLevel(logging.WARNING)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # one for each file
    with _alone(settings.tracking_uri):
        client = MlflowClient(settings.tracking_uri)
        return Experiment(client, _number(client, settings))


def is_away(error: Exception) -> bool:
    """Whether an error says that the store does not answer; all others say that it refuses."""
    return not isinstance(error, MlflowException) or error.error_code in NO_ANSWER


def address(settings: Mlflow) -> str:
    """The store's address without a name and a password, to be shown."""
    return without_secrets(settings.tracking_uri)


def reason_of(settings: Mlflow, error: Exception) -> str:
    """An error's first line, to be shown; of a connection that failed, why."""
    return str(error).partition("\n")[0].rpartition("(Caused by ")[2].replace(settings.tracking_uri, address(settings))


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock beside an SQLite file: processes that create one at the same time break its migrations."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _number(client: MlflowClient, settings: Mlflow) -> str:
    """The experiment's number; that of another process, where both would make it at the same moment."""
    if (experiment := client.get_experiment_by_name(settings.experiment)) is None:
        try:
            return client.create_experiment(settings.experiment, _artifact_root(settings))
        except MlflowException:
            if (experiment := client.get_experiment_by_name(settings.experiment)) is None:
                raise
    return experiment.experiment_id


def _artifact_root(settings: Mlflow) -> str | None:
    """Where artifacts go; None leaves it to a server."""
    if settings.tracking_uri.startswith("http"):
        return None
    return settings.artifacts if "://" in settings.artifacts else Path(settings.artifacts).resolve().as_uri()
