"""Backbones load strictly: the right file gives timm's own outputs, any other is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from masm.backbones import STARTER, build_backbone, load_backbone
from masm.errors import UserError

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny(shared: Path) -> Path:
    return shared / "models" / "vit_tiny_patch16_224.safetensors"


@pytest.fixture
def full_size(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file with random weights of timm's model, head included."""
    weights = timm.create_model(NAME, pretrained=False).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", weights


def test_shared_file_gives_the_outputs_of_plain_timm(tiny: Path) -> None:
    backbone = load_backbone(NAME, tiny, 224)
    plain = timm.create_model(NAME, pretrained=False).eval()
    plain.load_state_dict(load_file(tiny), strict=True)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
        assert torch.equal(backbone.model(images), expected)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


def test_shared_file_serves_smaller_images(tiny: Path) -> None:
    backbone = load_backbone(NAME, tiny, 96)
    expected = resample_abs_pos_embed(load_file(tiny)["pos_embed"], [6, 6], num_prefix_tokens=1)
    assert torch.equal(backbone.model.pos_embed, expected)
    assert backbone.model(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


def test_name_and_arguments_build_the_same_architecture(full_size: tuple[Path, dict]) -> None:
    backbone = load_backbone(NAME, full_size[0], 64)
    again = build_backbone(backbone.name, backbone.arguments)
    again.load_state_dict(backbone.model.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), backbone.model(images))


def test_missing_and_unexpected_keys_are_named(full_size: tuple[Path, dict], tmp_path: Path) -> None:
    """Defect 7 of the reference benchmark: what a file lacks stays random, without an error."""
    weights = dict(full_size[1])
    del weights["blocks.3.attn.qkv.weight"]
    weights["decoder.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError) as caught:
        load_backbone(NAME, tmp_path / "wrong.safetensors", 224)
    for part in ("missing blocks.3.attn.qkv.weight", "unexpected decoder.weight", NAME, "wrong.safetensors"):
        assert part in str(caught.value)


def test_at_most_five_keys_are_listed(full_size: tuple[Path, dict], tmp_path: Path) -> None:
    kept = {key: value for key, value in full_size[1].items() if not key.startswith("blocks.")}
    save_file(kept, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError) as caught:
        load_backbone(NAME, tmp_path / "wrong.safetensors", 224)
    assert str(caught.value).count("missing ") == 5


def test_a_file_of_another_model_is_an_error(full_size: tuple[Path, dict]) -> None:
    with pytest.raises(UserError, match="shape of cls_token"):
        load_backbone("vit_small_patch16_224", full_size[0], 224)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vit_tiny_patch16_22", "starter.safetensors", "did you mean 'vit_tiny_patch16_224'"),
        ("resnet18", "starter.safetensors", "Name a ViT"),
        (NAME, "nowhere.safetensors", "nowhere.safetensors are missing"),
    ],
)
def test_wrong_names_say_what_to_do(name: str, weights: str, message: str) -> None:
    """Defect 7 of the reference benchmark: without its weight file a model is random."""
    with pytest.raises(UserError, match=message):
        load_backbone(name, weights, 64)


def test_a_file_that_is_not_safetensors_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(UserError, match="no readable safetensors"):
        load_backbone(NAME, path, 64)


def test_starter_loads_and_sees_faces() -> None:
    backbone = load_backbone("starter", "starter", 64)
    assert (STARTER / "model.safetensors").stat().st_size <= 12e6
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone.model(images)
    assert features.shape == (3, 192)
    assert torch.isfinite(features).all()
    assert not torch.allclose(features[0], features[1])


def test_starter_is_resampled_to_other_sizes() -> None:
    assert load_backbone("starter", "starter", 96).model(torch.zeros(1, 3, 96, 96)).shape == (1, 192)


def test_importing_backbones_needs_torch_timm_and_safetensors_alone() -> None:
    check = (
        "import sys; blocked = ('ray', 'mlflow', 'cv2', 'pandas', 'pyarrow', 'sklearn', 'pydantic', 'kornia');"
        "sys.modules.update(dict.fromkeys(blocked)); import masm.backbones"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
