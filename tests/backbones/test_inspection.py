"""What a weight file is said to be, held against how the files were made."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from masm.backbones import build_backbone, load_backbone
from masm.backbones.inspection import candidates, inspect_file
from masm.cli import app
from masm.detector import Detector
from masm.errors import UserError
from tests.adapters.models import adapter
from tests.backbones import fsfm

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_file(timm.create_model(NAME, num_classes=7).state_dict(), path)
    return path


def test_a_plain_file(plain: Path) -> None:
    found = inspect_file(plain)
    assert found.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert found.kinds == ("timm",)
    assert (found.embed_dim, found.depth, found.patch_size) == (192, 12, 16)
    assert (found.tokens, found.image_size) == (197, 224)
    assert found.parameters == sum(value.numel() for value in timm.create_model(NAME, num_classes=0).parameters())
    assert (found.left_out, found.classes) == (("head",), None)
    assert found.fits[0].name == NAME
    for fit in found.fits:  # each of them is true
        backbone = load_backbone(fit.name, plain, 224)
        assert (backbone.mean, backbone.std) == (fit.mean, fit.std)
        assert backbone.model.global_pool == fit.pooling
    assert "deit_tiny_patch16_224" in {fit.name for fit in found.fits}
    assert "vit_small_patch16_224" not in {fit.name for fit in found.fits}


def tiny_fsfm(checkpoint: str) -> dict[str, object]:
    """FSFM's form at the width of timm's tiny ViT."""
    weights = fsfm.encoder(side=14, width=192, depth=12, hidden=768)
    heads = {"fc_norm.weight": (192,), "fc_norm.bias": (192,), "head.weight": (2, 192), "head.bias": (2,)}
    if checkpoint == "pretraining":
        heads = {
            "norm.weight": (192,),
            "norm.bias": (192,),
            "decoder_pred.weight": (8, 8),
            "projector.0.weight": (8, 192),
        }
    return {"model": weights | fsfm.drawn(1, heads)}


@pytest.mark.parametrize(
    ("checkpoint", "left_out", "classes"),
    [("pretraining", ("decoder_pred", "norm", "projector"), None), ("fine-tuned", (), ("fake", "real"))],
)
def test_fsfm(tmp_path: Path, checkpoint: str, left_out: tuple[str, ...], classes: tuple[str, ...] | None) -> None:
    torch.save(tiny_fsfm(checkpoint), tmp_path / "fsfm.pth")
    found = inspect_file(tmp_path / "fsfm.pth")
    assert found.kinds == (f"fsfm {checkpoint}",)
    assert (found.left_out, found.classes) == (left_out, classes)
    assert found.fits[0].name == NAME
    assert {(fit.pooling, fit.mean, fit.std) for fit in found.fits} == {("avg", fsfm.MEAN, fsfm.STD)}
    backbone = load_backbone(NAME, tmp_path / "fsfm.pth", 64)
    assert (backbone.model.global_pool, backbone.mean, backbone.std) == ("avg", fsfm.MEAN, fsfm.STD)


def test_an_encoder_alone_can_be_two_things(tmp_path: Path) -> None:
    weights = timm.create_model(NAME, num_classes=0).state_dict()
    torch.save({"model": weights}, tmp_path / "encoder.pth")
    found = inspect_file(tmp_path / "encoder.pth")
    assert found.kinds == ("fsfm pretraining", "timm")
    assert {(fit.kind, fit.pooling) for fit in found.fits if fit.name == NAME} == {
        ("fsfm pretraining", "avg"),
        ("timm", "token"),
    }


def test_a_detector_of_ours(tmp_path: Path) -> None:
    torch.save(fsfm.fine_tuned(fsfm.encoder()), tmp_path / "fsfm.pth")
    backbone = load_backbone(fsfm.NAME, tmp_path / "fsfm.pth", 64)
    Detector.build(backbone, adapter(method="masm"), 0).save(tmp_path / "detector", {})
    found = inspect_file(tmp_path / "detector")
    assert found.path == tmp_path / "detector" / "model.safetensors"
    assert found.kinds == ("masm detector",)
    assert (found.embed_dim, found.depth) == (fsfm.WIDTH, fsfm.DEPTH)
    [fit] = found.fits
    assert (fit.name, fit.pooling, fit.mean, fit.std) == (fsfm.NAME, "avg", fsfm.MEAN, fsfm.STD)
    with pytest.raises(UserError, match="give the backbone that it began with"):
        load_backbone(fsfm.NAME, found.path, 64)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(2, 2)}, tmp_path / "resnet.pth")
    found = inspect_file(tmp_path / "resnet.pth")
    assert (found.embed_dim, found.depth, found.patch_size, found.tokens, found.fits) == (None, 0, None, None, ())


def test_the_command_prints_it(plain: Path) -> None:
    printed = CliRunner().invoke(app, ["backbone", "inspect", str(plain)])
    assert printed.exit_code == 0
    for part in (
        NAME,
        hashlib.sha256(plain.read_bytes()).hexdigest(),
        "197 position embeddings",
        "mean 0.5, 0.5, 0.5",
    ):
        assert part in printed.output
    as_json = json.loads(CliRunner().invoke(app, ["backbone", "inspect", str(plain), "--json"]).output)
    assert as_json["fits"][0] == {
        "kind": "timm",
        "name": NAME,
        "pooling": "token",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    assert as_json["embed_dim"] == 192


@pytest.mark.parametrize("name", ["head.weight", "patch_embed.proj.weight", "pos_embed", "blocks."])
@pytest.mark.parametrize("container", ["", "model"])
def test_tensors_without_a_shape_are_no_backbone(tmp_path: Path, name: str, container: str) -> None:
    tensors = {name: torch.tensor(1.0), "fc_norm.weight": torch.zeros(2)}
    torch.save({container: tensors} if container else tensors, tmp_path / "odd.pth")
    assert inspect_file(tmp_path / "odd.pth").fits == ()
    with pytest.raises(UserError):
        load_backbone("test_vit", tmp_path / "odd.pth", 64, "fsfm")


@pytest.mark.slow
def test_every_vision_transformer_is_among_the_candidates_of_its_shape() -> None:
    shapes = {name: patch_embedding(name) for name in timm.list_models(["vit_*patch*", "pe_core_*patch*"])}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    assert len(known) > 190
    assert [name for name, (width, *_, side) in known.items() if name not in candidates(width, side)] == []


def patch_embedding(name: str) -> torch.Size | None:
    """The shape of a model's patch embedding; None where it has another stem, or is none of ours."""
    for arguments in ({"depth": 1}, {}):  # one block is enough, where a model lets itself be cut to it
        with suppress(UserError, AttributeError), torch.device("meta"):
            return build_backbone(name, arguments).patch_embed.proj.weight.shape
    return None
