"""What a job has trained becomes a model that anybody fetches from MLflow's server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from tests.cluster.conftest import checkpoints
from tests.cluster.machines import BASE, BIN
from tests.cluster.ray_cluster import Job
from tests.cluster.services import Tracking
from tests.pipeline.workspace import edit, run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def own(trained: Job, prepared: Path, tmp_path: Path) -> Path:
    """A copy of the workspace and of what the job left: a stage that takes a job's result discards it."""
    assert checkpoints(prepared), trained.logs
    folder, storage = tmp_path / "workspace", tmp_path / "trained"
    shutil.copytree(prepared, folder, symlinks=True)
    shutil.copytree(BASE / "storage" / "trained", storage)
    edit(folder / "params.yaml", {"ray.storage": str(storage)})
    return folder


def test_the_jobs_model_is_registered_and_fetched_through_the_server(
    own: Path,
    local: Mapping[str, str],
    tracking: Tracking,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = sorted((own / "mlartifacts").rglob("*"))  # of the search that prepared the workspace
    done = run(str(BIN / "dvc"), "repro", folder=own, environment={**local, **tracking.client})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # Taken, then discarded: a training of its own would have another name, and leave the job's.
    assert not list((own.parent / "trained").glob("train-*"))
    for name, value in tracking.client.items():
        monkeypatch.setenv(name, value)
    version = MlflowClient().get_model_version_by_alias("masm-detector", "champion")
    assert MlflowClient().get_run(version.run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    fetched = mlflow.artifacts.download_artifacts("models:/masm-detector@champion", dst_path=str(tmp_path / "fetched"))
    (model,) = Path(fetched).rglob("detector/model.safetensors")
    assert model.read_bytes() == (own / "models" / "detector" / "model.safetensors").read_bytes()
    assert [path.name for path in tracking.artifacts.rglob("model.safetensors")] == ["model.safetensors"]
    assert sorted((own / "mlartifacts").rglob("*")) == ours
