"""The command that makes the starter, with tiny settings, by Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masm.backbones import build_backbone
from masm.data.views import Views
from masm.errors import UserError
from masm.settings import Settings, load_settings
from pipelines import pretrain
from pipelines.workers import discard_run
from tests.conftest import ROOT
from tests.pipeline.workspace import edit

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def make_settings(folder: Path, shared: Path, **changes: object) -> Settings:
    """Two drawn people and two portraits, beside them a file that is none."""
    faces = folder / "faces"
    faces.mkdir(exist_ok=True)
    for portrait in sorted((shared / "faces" / "portraits").glob("*.jpg"))[:2]:
        (faces / portrait.name).write_bytes(portrait.read_bytes())
    (faces / "empty.jpg").write_bytes(b"")
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    small = {
        "people": 2, "photographs": 1, "folder": "faces", "origin": "portraits (public domain)", "views": 3,
        "detector_weights": str(shared / "models" / "face_detection_yunet_2023mar.onnx"),
        "workers": 2, "steps": 4, "batch_size": 4, **changes,
    }  # fmt: skip
    edit(folder / "params.yaml", {f"pretrain.{key}": value for key, value in small.items()})
    edit(folder / "params.yaml", {"ray.storage": str(folder / "ray")})
    return load_settings(folder / "params.yaml")


def test_a_run_that_failed_goes_on_and_leaves_weights_and_card(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(tmp_path, shared)
    views = tmp_path / "data" / "work" / "pretrain"
    views.mkdir(parents=True)
    (views / "of-another-run.safetensors").touch()

    class Killed(Exception):
        """Stands for a command that is killed once its workers are done."""

    def killed(*arguments: object) -> None:
        raise Killed

    def no_more(*arguments: object) -> None:
        raise AssertionError("the views are there already")

    def checkpoints() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "ray").rglob("state.safetensors")}

    kept: dict[Path, int] = {}

    def discarded(*arguments: str) -> None:
        kept.update(checkpoints())
        discard_run(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_card", killed)
        with pytest.raises(Killed):
            pretrain.main(settings, tmp_path / "starter")
    assert "empty.jpg gives no face: empty file" in capsys.readouterr().err
    assert len(list(views.iterdir())) == 2
    left = checkpoints()
    assert left
    monkeypatch.setattr(pretrain, "make_views", no_more)
    monkeypatch.setattr(pretrain, "discard_run", discarded)
    pretrain.main(settings, tmp_path / "starter")
    assert kept == left
    assert [path.name for path in views.iterdir()] == ["of-another-run.safetensors"]
    assert not list((tmp_path / "ray").glob("pretrain-*"))
    card = json.loads((tmp_path / "starter" / "card.json").read_text())
    made = card["pretraining"]
    assert [item["crops"] for item in made["saw"]] == [8, 6]
    assert [item["photographs"] for item in made["saw"]] == [2, 2]
    assert made["saw"][1]["unusable"] == {"empty.jpg": "empty file"}
    assert len(made["saw"][1]["sha256"]) == 64
    assert made["loss"]["total"] > 0
    assert "CPU threads" in made["machine"] or torch.cuda.is_available()
    assert str(tmp_path) not in json.dumps(card)
    encoder = build_backbone(card["name"], card["arguments"])
    encoder.load_state_dict(load_file(tmp_path / "starter" / "model.safetensors"))
    assert torch.isfinite(encoder(torch.zeros(1, 3, 64, 64))).all()
    readme = (tmp_path / "starter" / "README.md").read_text()
    assert "6 crops of 2 photographs: portraits (public domain)" in readme
    assert "- Command: `python -m pipelines.pretrain` with `pretrain.folder` at the photographs" in readme
    assert made["saw"][1]["sha256"] in readme


def test_the_card_counts_what_gave_no_face_where_it_belongs(shared: Path, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, shared)
    photographs = pretrain._photographs(settings)
    lost = {pretrain._drawn(settings)[0].name: "no landmarks", "empty.jpg": "empty file"}
    views = Views(np.zeros((10, 64, 64, 3), np.uint8), np.zeros((10, 64), np.uint8), lost)
    drawn, portraits = pretrain._saw(settings, views, photographs, "")
    assert (drawn["photographs"], drawn["crops"], list(drawn["unusable"])) == (1, 4, [*lost][:1])
    assert (portraits["photographs"], portraits["crops"], list(portraits["unusable"])) == (2, 6, ["empty.jpg"])
    alone = make_settings(tmp_path, shared, people=0)
    assert [item["origin"] for item in pretrain._saw(alone, views, photographs, "")] == ["portraits (public domain)"]


def test_other_views_have_another_name(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "yunet.onnx"
    weights.write_bytes(b"one")
    settings = make_settings(tmp_path, shared, detector_weights=str(weights))
    names = [pretrain._views_name(settings, "")]
    weights.write_bytes(b"another")
    names.append(pretrain._views_name(settings, ""))
    monkeypatch.setitem(pretrain.ARGUMENTS, "patch_size", 16)
    names.append(pretrain._views_name(settings, ""))
    assert len(set(names)) == 3


def test_a_mistake_of_a_worker_is_told_in_a_sentence(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "MAX_FAILURES", 0)  # Ray takes it for a failure like any other
    with pytest.raises(UserError, match=r"lower pretrain\.lr"):
        pretrain.main(make_settings(tmp_path, shared, lr=1e30, workers=1, steps=20), tmp_path / "starter")
    assert not (tmp_path / "starter").exists()
