"""What MLflow keeps of a run: settings, data, history, files, and the model with its manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models.model import ModelInfo

from masm.promotion import Verdict
from masm.registry.versions import ARTIFACTS, EVIDENCE, REPORT, evidence_tag
from masm.serving.manifest import MANIFEST, DamagedModel, digest, write_manifest
from masm.serving.packaging import DETECTOR, ModelFiles, log_model
from masm.tracking.recorder import flatten


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
    """Where a run and its model are to be found.

    Attributes:
        run_id: of the run.
        experiment_id: of its experiment.
        model_uri: of the model.
        digests: tags for the version: SHA-256 of the model's manifest, and of the files that a gate reads.
    """

    run_id: str
    experiment_id: str
    model_uri: str
    digests: Mapping[str, str]


def log_run(record: Record, files: ModelFiles) -> LoggedRun:
    """Record a run with its model; it stands as failed in MLflow where this does not come to its end."""
    with mlflow.start_run(tags=dict(record.tags)) as run:
        mlflow.log_params(flatten(record.parameters))
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
        digests = {ARTIFACTS: _seal(model, files.detector)}
    digests |= {evidence_tag(path.name): digest(path) for path in record.files if path.name in EVIDENCE}
    return LoggedRun(run.info.run_id, run.info.experiment_id, model.model_uri, digests)


def log_decision(client: MlflowClient, run_id: str, verdict: Verdict, report: str) -> None:
    """Add a verdict to a run: decision.json, and the report (HTML) that shows it."""
    client.log_text(run_id, verdict.to_json(), "decision.json")
    client.log_text(run_id, report, REPORT)


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


def _described(dataset: Dataset, tags: Mapping[str, str]) -> MetaDataset:
    """A dataset as MLflow knows it: DVC's address and digest in place of the data."""
    address = {"dvc.path": dataset.path, "dvc.md5": dataset.md5, "git.commit": tags.get("git.commit", "none")}
    source = CodeDatasetSource(address)
    return MetaDataset(source, name=dataset.name, digest=dataset.md5[:12])  # type: ignore[abstract]
