"""Which version serves: the one that the registry names, as soon as it has proved that it can."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from masm import registry
from masm.errors import UserError
from masm.serving.scorer import Scorer
from masm.settings import Serving

logger = logging.getLogger("ray.serve")  # whose handlers a replica has

AGAIN = 60.0
"""Seconds until a version that was refused is tried again: its files may have been brought back."""
FOLDERS = "masm-serving-"
"""How the folders of the copies begin; then comes the process that made them."""


class Observer(Protocol):
    """Who hears of swaps."""

    def taken(self, version: str) -> None:
        """A version serves from now on."""

    def refused(self, version: str, reason: str) -> None:
        """A version was not taken."""

    def serves(self, version: str) -> None:
        """A version serves, told by each look."""


@dataclass(frozen=True)
class Served:
    """A loaded version; it and its files live until the last request that began with it has ended."""

    name: str
    version: str
    scorer: Scorer
    folder: tempfile.TemporaryDirectory[str]


@dataclass(frozen=True)
class Refusal:
    """A version that was not taken, why, and the time at which it is tried again."""

    version: str
    reason: str
    again: float


class Follower:
    """Follows an alias of the registry; a request takes `current` once, and keeps to it until its end.

    Args:
        client: of the registry.
        uri: models:/NAME@ALIAS, or models:/NAME/VERSION, which is never another.
        settings: how often to look, and the limits of images.
        observer: hears of swaps.
    """

    def __init__(self, client: MlflowClient, uri: str, settings: Serving, observer: Observer) -> None:
        self._client, self._uri, self._settings, self._observer = client, uri, settings, observer
        self.current: Served | None = None
        self.refusal: Refusal | None = None
        self.trouble: str | None = None
        """Why the registry could not be asked the last time."""

    def start(self) -> None:
        """Take the first version now, and go on in a thread that ends with the process."""
        remove_leftovers()
        self.poll()
        threading.Thread(target=self._follow, daemon=True).start()

    def close(self) -> None:
        """Remove the copy of the model."""
        if self.current is not None:
            self.current.folder.cleanup()

    def _follow(self) -> None:
        while True:
            time.sleep(self._settings.poll_seconds)
            self.poll()

    def poll(self) -> None:
        """Look once, and take another version where there is one; never raises, or nobody would look again."""
        try:
            self._look()
        except Exception as error:
            logger.exception("the registry could not be followed")
            self.trouble = str(error) or type(error).__name__
        if self.current is not None:
            self._observer.serves(self.current.version)

    def _look(self) -> None:
        try:
            version = registry.find_version(self._client, self._uri)
        except (UserError, MlflowException, SQLAlchemyError, OSError) as error:
            self._note_trouble(str(error).splitlines()[0])
            return
        self.trouble = None
        if self.current is not None and self.current.version == str(version.version):
            self.refusal = None
        elif not self._waits(version):
            self._take(version)
            self._note_promotion(version.name)

    def _note_trouble(self, reason: str) -> None:
        if self.trouble is None:
            logger.warning(f"{self._uri} cannot be looked up ({reason}); the model stays as it is.")
        self.trouble = reason

    def _note_promotion(self, name: str) -> None:
        """Enter a champion that a person set in MLflow's UI; where that fails, whoever looks next does it."""
        try:
            registry.notice(self._client, name)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            logger.warning(f"the promotion of {name} could not be entered: {error}")

    def _waits(self, version: ModelVersion) -> bool:
        refusal = self.refusal
        return refusal is not None and refusal.version == str(version.version) and time.monotonic() < refusal.again

    def _take(self, version: ModelVersion) -> None:
        try:
            served = load(self._client, version, self._settings)
        except Exception as error:  # noqa: BLE001  # whatever is wrong with a new version, the old one goes on
            reason = str(error) or type(error).__name__
            logger.error(f"{version.name} version {version.version} is refused: {reason}")
            self._observer.refused(str(version.version), reason)  # first: whoever sees the refusal finds it counted
            self.refusal = Refusal(str(version.version), reason, time.monotonic() + AGAIN)
            return
        self.current, self.refusal = served, None
        logger.info(f"{version.name} version {version.version} serves")
        self._observer.taken(served.version)


def load(client: MlflowClient, version: ModelVersion, settings: Serving) -> Served:
    """Download a version, its files checked against their hashes, load it, and let it score a crop.

    Raises:
        UserError: a file is missing or was changed.
        Exception: whatever loading a broken model raises.
    """
    folder = tempfile.TemporaryDirectory(prefix=f"{FOLDERS}{os.getpid()}-")
    scorer = Scorer(registry.download(client, version, Path(folder.name)), max_pixels=settings.max_pixels)
    side = scorer.cropper.profile.size
    logits = scorer.logits(np.zeros((1, side, side, 3), np.uint8))
    if not np.isfinite(logits).all():
        raise UserError("its scores are not finite: its weights are damaged, train it again.")
    return Served(version.name, str(version.version), scorer, folder)


def remove_leftovers() -> None:
    """Remove the copies of models whose processes were ended before they could do it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*-*"):
        number = folder.name.removeprefix(FOLDERS).split("-")[0]
        if number.isdigit() and not _is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    with suppress(PermissionError):  # it is another user's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
