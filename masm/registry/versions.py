"""The versions of a registered model: find them, list them, and bring back what belongs to one, checked."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

from masm.errors import UserError
from masm.registry.store import CHAMPION
from masm.scorecard import Estimate
from masm.serving.manifest import DamagedModel, check_manifest, digest
from masm.serving.packaging import DETECTOR

ARTIFACTS = "artifacts.sha256"  # tag of a version: SHA-256 of its model's manifest
EVIDENCE = ("scores.parquet", "metrics.json", "checks.json")  # what a gate reads of a version's run
REPORT = "report.html"  # of a version's run
FIGURES = ("video_auc", "video_auc_low", "video_auc_high")  # tags of a version
# What MLflow answers where there is no such model or version, and no such alias.
_NO_SUCH = tuple(map(ErrorCode.Name, (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)))


@dataclass(frozen=True)
class Version:
    """A version of the registered model; `video_auc` is the macro mean over the test datasets.

    `promoted_by` and `promoted` say who made it champion the last time, and when (ISO 8601, UTC).
    """

    version: int
    aliases: tuple[str, ...]
    video_auc: Estimate | None
    verdict: str | None
    promoted_by: str | None
    promoted: str | None
    created: datetime
    run_id: str | None


def evidence_tag(name: str) -> str:
    """The tag of a version that keeps the SHA-256 of a file of its run."""
    return f"{name}.sha256"


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The version that has alias `champion`; None where no version has it, or there is none at all."""
    number = aliases_of(client, name).get(CHAMPION)
    return None if number is None else client.get_model_version(name, number)


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        UserError: it is written otherwise, or there is no such version.
        MlflowException: the store could not say.
    """
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if named is None:
        raise UserError(f"{uri} names no registered model: write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = named.groups()
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in _NO_SUCH:
            raise
        raise UserError(f"there is no {uri} ({error.message}): `masm registry list` shows what there is.") from None


def resolve(client: MlflowClient, name: str, said: str) -> ModelVersion:
    """The version of a model that a person means by `3`, `champion`, `@champion` or a whole models:/ address.

    Raises:
        UserError: there is none.
    """
    if said.startswith("models:/"):
        return find_version(client, said)
    return find_version(client, f"models:/{name}/{said}" if said.isdigit() else f"models:/{name}@{said.lstrip('@')}")


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
            Nor is a model handed out that masm did not register: nothing says what its files should be.
    """
    model = label(version)
    expected = version.tags.get(ARTIFACTS)
    if expected is None:
        raise DamagedModel(
            f"{model} has no tag {ARTIFACTS}, so that its files cannot be checked: register it by masm."
        )
    source = client.get_model_version_download_uri(version.name, version.version)
    path = _fetch(source, folder, f"{model}: its files are")
    check_manifest(path, expected, model)
    return path


@contextmanager
def stored_detector(client: MlflowClient, version: ModelVersion) -> Iterator[Path]:
    """A checked copy of a version's detector folder, for as long as the context lasts (errors as `download`)."""
    with tempfile.TemporaryDirectory() as folder:
        yield download(client, version, Path(folder)) / "artifacts" / DETECTOR


@contextmanager
def recorded(version: ModelVersion, name: str) -> Iterator[Path]:
    """A checked copy of a file of EVIDENCE that a version's run recorded, for as long as the context lasts.

    Raises:
        DamagedModel: it is gone, or not what was recorded.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = _fetch(f"runs:/{version.run_id}/{name}", Path(folder), f"{label(version)}: {name} of its run is")
        if digest(path) != version.tags.get(evidence_tag(name)):
            raise DamagedModel(f"{label(version)}: {name} of its run is not what was recorded (SHA-256 differs).")
        yield path


def report_of(version: ModelVersion) -> str:
    """The report (HTML) of a version's run.

    Raises:
        DamagedModel: it is gone.
    """
    with tempfile.TemporaryDirectory() as folder:
        what = f"{label(version)}: {REPORT} of its run is"
        return _fetch(f"runs:/{version.run_id}/{REPORT}", Path(folder), what).read_text(encoding="utf-8")


def _fetch(uri: str, folder: Path, what: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedModel(
            f"{what} not in the artifact store ({reason}): bring them back, or delete the version's alias."
        ) from None


def label(version: ModelVersion) -> str:
    """What to call a version."""
    return f"{version.name} version {version.version}"


def list_versions(client: MlflowClient, name: str) -> list[Version]:
    """All versions of a registered model, newest first; none where it does not exist."""
    aliases = aliases_of(client, name)
    return sorted((describe(item, aliases) for item in versions_of(name)), key=lambda row: -row.version)


def versions_of(name: str) -> list[ModelVersion]:
    """All versions as MLflow has them, without their aliases, which its search leaves out."""
    return list(mlflow.search_model_versions(filter_string=f"name='{name}'"))


def describe(item: ModelVersion, aliases: Mapping[str, str]) -> Version:
    """A version in our terms.

    Args:
        item: MLflow's.
        aliases: version numbers by alias.
    """
    figures = [item.tags[key] for key in FIGURES if key in item.tags]
    return Version(
        version=int(item.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == str(item.version))),
        video_auc=Estimate(*map(float, figures)) if len(figures) == len(FIGURES) else None,
        verdict=item.tags.get("verdict"),
        promoted_by=item.tags.get("promoted_by"),
        promoted=item.tags.get("promoted"),
        created=datetime.fromtimestamp(item.creation_timestamp / 1000, UTC),
        run_id=item.run_id,
    )


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Version numbers by alias; none where there is no such model."""
    model = model_of(client, name)
    return {} if model is None else {alias: str(number) for alias, number in model.aliases.items()}


def model_of(client: MlflowClient, name: str) -> RegisteredModel | None:
    """The registered model; None where there is none."""
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None
