"""The way to MLflow's store: connect, and say in one sentence that it does not answer."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import mlflow
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE, ErrorCode
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from masm.errors import UserError
from masm.settings import Mlflow

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS_CHAMPION = "previous_champion"
NO_ANSWER = tuple(map(ErrorCode.Name, (INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE)))


def connect(settings: Mlflow) -> MlflowClient:
    """Point MLflow at its tracking store; make the database and the experiment where they are missing.

    Raises:
        UserError: the store cannot be reached or opened.
    """
    for noisy in ("alembic", "mlflow"):  # a fresh database reports each of its migrations
        logging.getLogger(noisy).setLevel(logging.WARNING)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # one for each file
    _check_reachable(settings.tracking_uri)
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    try:
        with _alone(settings.tracking_uri):
            client = MlflowClient()
            if client.get_experiment_by_name(settings.experiment) is None:
                client.create_experiment(settings.experiment, _artifact_root(settings))
        mlflow.set_experiment(settings.experiment)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"MLflow at {settings.tracking_uri} cannot be used ({reason}): check mlflow.tracking_uri."
        ) from None
    return client


@contextmanager
def answering(settings: Mlflow) -> Iterator[None]:
    """Turn a store that stops answering, or refuses what it is asked for, into one sentence.

    Raises:
        UserError: it does; nothing is half promoted, whenever that is.
    """
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, MlflowException) and error.error_code not in NO_ANSWER:
            raise UserError(
                f"MLflow at {settings.tracking_uri} refuses this ({reason}): check your rights there, and that nobody "
                "removed what this needs."
            ) from error
        raise UserError(
            f"MLflow at {settings.tracking_uri} stopped answering ({reason}): start it and run this again; "
            "the champion is a whole one, the former or the new."
        ) from error


def _check_reachable(uri: str) -> None:
    """Raise UserError where a server does not answer: MLflow itself would try for four minutes."""
    if not uri.startswith("http"):
        return
    try:
        urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except HTTPError:
        return  # it answers; whether it lets us in shows itself later
    except OSError as error:
        raise UserError(f"MLflow at {uri} does not answer ({error}): start it, or correct its address.") from None


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


def _artifact_root(settings: Mlflow) -> str | None:
    """Where artifacts go; None leaves it to a server."""
    if settings.tracking_uri.startswith("http"):
        return None
    return settings.artifacts if "://" in settings.artifacts else Path(settings.artifacts).resolve().as_uri()
