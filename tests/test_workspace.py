from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from masm.errors import UserError
from masm.settings import load_settings
from masm.summary import print_summary
from masm.workspace import WITHOUT_LANDMARKS, Source, create_workspace
from tests.conftest import ROOT


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """What a workspace is made from, without the code."""
    folder = tmp_path / "repository"
    (folder / "runs").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "runs/photographs.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    (tmp_path / "people").mkdir()
    (tmp_path / "vit_tiny_patch16_224.safetensors").touch()
    (tmp_path / "yunet.onnx").touch()
    return folder


def test_a_workspace_has_the_same_stages_and_its_own_settings(repository: Path, tmp_path: Path) -> None:
    source = Source(tmp_path / "people", tmp_path / "vit_tiny_patch16_224.safetensors", tmp_path / "yunet.onnx")
    workspace = create_workspace(repository, source)
    assert workspace == repository / "runs" / "people"
    assert (workspace / "dvc.yaml").read_bytes() == (repository / "dvc.yaml").read_bytes()
    settings = load_settings(workspace / "params.yaml")
    assert settings.path(settings.code) == repository
    assert settings.faces.folder is not None
    assert settings.path(settings.faces.folder) == tmp_path / "people"
    assert settings.path(settings.backbone.weights) == tmp_path / "vit_tiny_patch16_224.safetensors"
    assert settings.backbone.name == "vit_tiny_patch16_224"
    assert settings.crop.detector == "yunet"
    assert settings.mlflow.model == "masm-detector-people"
    assert settings.mlflow.tracking_uri == f"sqlite:///{repository}/mlflow.db"
    assert set(settings.datasets) == set(load_settings(repository / "params.yaml").datasets)


def test_changed_settings_are_kept_and_another_source_is_refused(repository: Path, tmp_path: Path) -> None:
    source = Source(tmp_path / "people", tmp_path / "vit_tiny_patch16_224.safetensors", tmp_path / "yunet.onnx")
    params = create_workspace(repository, source) / "params.yaml"
    changed = params.read_text().replace("seed: 7", "seed: 8  # mine")
    params.write_text(changed)
    create_workspace(repository, source)
    assert params.read_text() == changed
    with pytest.raises(UserError, match="is there already, for other FACES, BACKBONE or DETECTOR"):
        create_workspace(repository, Source(tmp_path / "people", None, tmp_path / "yunet.onnx"))
    assert params.read_text() == changed


def test_without_yunet_only_what_needs_no_landmarks_is_made(repository: Path, tmp_path: Path) -> None:
    settings = load_settings(create_workspace(repository, Source(tmp_path / "people", None, None)) / "params.yaml")
    assert settings.crop.detector == "cascade"
    assert set(settings.datasets) == set(WITHOUT_LANDMARKS)
    made = {forgery for dataset in settings.datasets.values() for forgery in dataset.forgeries}
    assert made == {"selfblend", "denoise", "upsample"}
    assert {dataset.role for dataset in settings.datasets.values()} == {"train", "validate", "test"}


@pytest.mark.parametrize("missing", ["faces", "backbone", "face_detector"])
def test_a_missing_file_is_named(repository: Path, tmp_path: Path, missing: str) -> None:
    files = {
        "faces": tmp_path / "people",
        "backbone": tmp_path / "vit_tiny_patch16_224.safetensors",
        "face_detector": tmp_path / "yunet.onnx",
        missing: tmp_path / "nowhere",
    }
    with pytest.raises(UserError, match=r"there is nothing at .*nowhere"):
        create_workspace(repository, Source(**files))


def test_a_backbone_is_named_by_its_model(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UserError, match="is not named by a timm model"):
        create_workspace(repository, Source(tmp_path / "people", tmp_path / "weights.safetensors", None))


def test_the_summary_shows_what_is_defined_and_says_what_is_not(repository: Path) -> None:
    settings = load_settings(repository / "params.yaml")
    reports = repository / "reports"
    reports.mkdir()
    metrics = {"gain.video_auc": 0.125, "gain.video_auc_low": 0.1, "gain.video_auc_high": 0.15}
    metrics |= {"adapted.upsample.frame_auc": 0.91, "adapted.upsample.video_auc": 0.94, "adapted.upsample.videos": 168}
    metrics |= {"adapted.upsample.video_auc_low": 0.9, "adapted.upsample.video_auc_high": 0.97}
    (reports / "metrics.json").write_text(json.dumps(metrics))
    promotion = {"model": "masm-detector", "version": 3, "aliases": ["champion"], "reason": "better"}
    (reports / "promotion.json").write_text(json.dumps(promotion))
    console = Console(record=True, width=160)
    print_summary(settings, console)
    printed = console.export_text()
    for words in (
        "0.910",
        "0.940",
        "0.900 to 0.970",
        "168",
        "undefined",
        "+0.125",
        "masm-detector version 3 is champion",
    ):
        assert words in printed
