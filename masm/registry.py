"""MLflow: what is recorded of a run, the versions of the registered model, and which of them is champion.

Alias `champion` is the version that serves; `challenger` is the other one of the last comparison. A version
that was champion keeps tag `previous_champion`, whose value is the time at which it was replaced (ISO 8601,
UTC), so that the latest of them is the one to roll back to.
"""

from __future__ import annotations

import fcntl
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import urlopen

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy.exc import SQLAlchemyError

from masm.errors import UserError
from masm.promotion import Verdict
from masm.scorecard import Estimate
from masm.serving.manifest import MANIFEST, DamagedModel, check_manifest, digest, write_manifest
from masm.serving.packaging import DETECTOR, ModelFiles, log_model
from masm.settings import Mlflow

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS_CHAMPION = "previous_champion"
ARTIFACTS = "artifacts.sha256"  # tag of a version: SHA-256 of its model's manifest
SCORES = "scores.parquet"
FIGURES = ("video_auc", "video_auc_low", "video_auc_high")  # tags of a version


@dataclass(frozen=True)
class Dataset:
    """A face table that a run used: where DVC keeps it, and its MD5 in dvc.lock."""

    name: str
    role: str
    path: str
    md5: str


@dataclass(frozen=True)
class Record:
    """What is kept of a run besides its model.

    Attributes:
        parameters: settings as a tree; they are logged as `section.key`.
        tags: the lineage.
        metrics: figures of the model by name.
        history: one row of figures for each epoch of training, with `epoch` among them; None is undefined.
        datasets: the face tables.
        files: reports, scores and whatever else explains the model.
        texts: further artifacts by file name.
    """

    parameters: Mapping[str, Any]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, float | None]]
    datasets: Sequence[Dataset]
    files: Sequence[Path]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class LoggedRun:
    """Where a run and its model are to be found; `digest` is the SHA-256 of the model's manifest."""

    run_id: str
    model_uri: str
    digest: str


@dataclass(frozen=True)
class Version:
    """A version of the registered model; `video_auc` is the macro mean over the test datasets."""

    version: int
    aliases: tuple[str, ...]
    video_auc: Estimate | None
    verdict: str | None
    created: datetime
    run_id: str | None


def connect(settings: Mlflow) -> MlflowClient:
    """Point MLflow at its tracking store; make the database and the experiment where they are missing.

    Raises:
        UserError: the store cannot be reached or opened.
    """
    for noisy in ("alembic", "mlflow"):  # a fresh database reports each of its migrations
        logging.getLogger(noisy).setLevel(logging.WARNING)
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


def log_run(record: Record, files: ModelFiles) -> LoggedRun:
    """Record a run with its model; it stands as failed in MLflow where this does not come to its end."""
    with mlflow.start_run(tags=dict(record.tags)) as run:
        mlflow.log_params(_flatten(record.parameters))
        for dataset in record.datasets:
            mlflow.log_input(_described(dataset, record.tags), context=dataset.role)
        for row in record.history:
            defined = {name: value for name, value in row.items() if name != "epoch" and value is not None}
            figures = {f"train.{name}": float(value) for name, value in defined.items()}
            mlflow.log_metrics(figures, step=int(cast(float, row["epoch"])))
        for path in record.files:
            mlflow.log_artifact(str(path))
        for name, text in record.texts.items():
            mlflow.log_text(text, name)
        model = log_model(files)
        mlflow.log_metrics(dict(record.metrics), model_id=model.model_id)
        sealed = _seal(model, files.detector)
    return LoggedRun(run.info.run_id, model.model_uri, sealed)


def _seal(model: ModelInfo, detector: Path) -> str:
    """Add the manifest to a logged model, and return its SHA-256.

    Raises:
        DamagedModel: what the artifact store holds of the detector is not what was sent.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(mlflow.artifacts.download_artifacts(model.model_uri, dst_path=folder))
        for path in detector.iterdir():
            if digest(stored / "artifacts" / DETECTOR / path.name) != digest(path):
                raise DamagedModel(f"The artifact store changed {path.name} of {model.model_uri}: log it again.")
        sealed = write_manifest(stored)
        MlflowClient().log_model_artifact(model.model_id, str(stored / MANIFEST))
    return sealed


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _described(dataset: Dataset, tags: Mapping[str, str]) -> MetaDataset:
    """A dataset as MLflow knows it: DVC's address and digest in place of the data."""
    address = {"dvc.path": dataset.path, "dvc.md5": dataset.md5, "git.commit": tags.get("git.commit", "none")}
    source = CodeDatasetSource(address)
    return MetaDataset(source, name=dataset.name, digest=dataset.md5[:12])  # type: ignore[abstract]


def register(client: MlflowClient, name: str, run: LoggedRun, tags: Mapping[str, str], verdict: Verdict) -> Version:
    """Register a run's model as the next version and give it its alias.

    Args:
        client: of `connect`.
        name: the registered model.
        run: of `log_run`.
        tags: the lineage; the version has it, the verdict and its figures from its first moment.
        verdict: whether it becomes champion; if not it stays challenger.
    """
    figures = {key: str(value) for key, value in verdict.summary().items()}
    known = {**tags, **figures, ARTIFACTS: run.digest}
    version = str(mlflow.register_model(run.model_uri, name, tags=known).version)
    client.set_registered_model_alias(name, CHALLENGER, version)
    if verdict.promoted:
        promote(client, name, version)
    return next(row for row in list_versions(client, name) if str(row.version) == version)


def promote(client: MlflowClient, name: str, version: str) -> None:
    """Move `champion` to a version; the one that had it becomes challenger, with tag `previous_champion`."""
    old = _aliases(client, name).get(CHAMPION)
    if old == version:
        return
    client.set_registered_model_alias(name, CHAMPION, version)
    client.delete_model_version_tag(name, version, PREVIOUS_CHAMPION)
    if old is None:
        client.delete_registered_model_alias(name, CHALLENGER)
    else:
        client.set_model_version_tag(name, old, PREVIOUS_CHAMPION, datetime.now(UTC).isoformat())
        client.set_registered_model_alias(name, CHALLENGER, old)


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that has alias `champion`; None where no version has it, or there is none at all."""
    number = _aliases(client, name).get(CHAMPION)
    return None if number is None else client.get_model_version(name, number)


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        UserError: it is written otherwise, or there is no such version.
    """
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if named is None:
        raise UserError(f"{uri} names no registered model: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = named.groups()
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        raise UserError(f"there is no {uri} ({error.message}): `masm registry list` shows what there is.") from None


def champion_scores(version: ModelVersion) -> pd.DataFrame:
    """The test scores that a version's run recorded.

    Raises:
        UserError: the file is gone.
    """
    with _downloaded(version, f"runs:/{version.run_id}/{SCORES}") as path:
        return pd.read_parquet(path)


def download(client: MlflowClient, version: ModelVersion, folder: Path) -> Path:
    """Copy a version's model into `folder` and check every file of it against the version's manifest.

    Args:
        client: of `connect`.
        version: of `find_version` or `champion`.
        folder: where the copy goes; it is made where it is missing.

    Returns:
        The model's folder, laid out as `masm.serving.packaging` does: `artifacts/detector` and the rest.

    Raises:
        DamagedModel: a file is missing or differs; the message names the first one.
        UserError: the model was not registered by masm, so that nothing says what its files should be.
    """
    model = f"{version.name} version {version.version}"
    expected = version.tags.get(ARTIFACTS)
    if expected is None:
        raise UserError(f"{model} has no tag {ARTIFACTS}, so that its files cannot be checked: register it by masm.")
    source = client.get_model_version_download_uri(version.name, version.version)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedModel(
            f"{model}: its files are not in the artifact store ({reason}): bring them back, or register it anew."
        ) from None
    check_manifest(path, expected, model)
    return path


@contextmanager
def stored_detector(client: MlflowClient, version: ModelVersion) -> Iterator[Path]:
    """A checked copy of a version's detector folder, for as long as the context lasts (errors as `download`)."""
    with tempfile.TemporaryDirectory() as folder:
        yield download(client, version, Path(folder)) / "artifacts" / DETECTOR


@contextmanager
def _downloaded(version: ModelVersion, uri: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = mlflow.artifacts.download_artifacts(uri, dst_path=folder)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"{uri} of {version.name} version {version.version} is not in the artifact store ({error}): "
                "bring it back, or delete the version's alias to begin anew."
            ) from None
        yield Path(path)


def list_versions(client: MlflowClient, name: str) -> list[Version]:
    """All versions of a registered model, newest first; none where it does not exist."""
    aliases = _aliases(client, name)
    found = mlflow.search_model_versions(filter_string=f"name='{name}'")
    return sorted((_row(item, aliases) for item in found), key=lambda row: -row.version)


def _row(item: ModelVersion, aliases: Mapping[str, str]) -> Version:
    figures = [item.tags[key] for key in FIGURES if key in item.tags]
    return Version(
        version=int(item.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(item.version))),
        video_auc=Estimate(*map(float, figures)) if len(figures) == len(FIGURES) else None,
        verdict=item.tags.get("verdict"),
        created=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC),
        run_id=item.run_id,
    )


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version numbers by alias; MLflow's search for versions leaves the aliases out."""
    try:
        return {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return {}
