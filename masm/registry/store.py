"""The way to the registry, what is said where it does not answer, and the names that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import urlopen

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from masm.errors import UserError
from masm.settings import Mlflow
from masm.tracking.store import address, is_away, open_experiment, reason_of

CHAMPION = "champion"
"""Alias of the version that serves."""
CHALLENGER = "challenger"
"""Alias of the other one of the last comparison."""
PREVIOUS_CHAMPION = "previous_champion"
"""Tag of a version that was champion."""


def connect(settings: Mlflow) -> MlflowClient:
    """Point MLflow at its tracking store; make the database and the experiment where they are missing.

    Raises:
        UserError: the store cannot be reached or opened.
    """
    _check_reachable(settings)
    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    try:
        client = open_experiment(settings).client
        mlflow.set_experiment(settings.experiment)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = reason_of(settings, error)
        raise UserError(
            f"MLflow at {address(settings)} cannot be used ({reason}): check mlflow.tracking_uri."
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
        reason = reason_of(settings, error)
        if not is_away(error):
            raise UserError(
                f"MLflow at {address(settings)} refuses this ({reason}): check your rights there, and that nobody "
                "removed what this needs."
            ) from error
        raise UserError(
            f"MLflow at {address(settings)} stopped answering ({reason}): start it and run this again; "
            "the champion is a whole one, the former or the new."
        ) from error


def _check_reachable(settings: Mlflow) -> None:
    """Raise UserError where a server does not answer: MLflow itself would try for four minutes."""
    uri = address(settings)
    if not uri.startswith("http"):
        return
    try:
        urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except HTTPError:
        return  # it answers; whether it lets us in shows itself later
    except OSError as error:
        raise UserError(f"MLflow at {uri} does not answer ({error}): start it, or correct its address.") from None
