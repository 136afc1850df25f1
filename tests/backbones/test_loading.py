"""Backbones load strictly: the right file gives timm's own outputs, any other is an error."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models import _registry

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


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_small_patch14_dinov2", 56), ("vit_xsmall_patch16_clip_224", 32), ("eva02_tiny_patch14_224", 28)],
)
def test_files_of_other_families_give_the_outputs_of_plain_timm(tmp_path: Path, name: str, size: int) -> None:
    plain = timm.create_model(name, img_size=size, num_classes=2).eval()
    torch.save({"epoch": 3, "state_dict": plain.state_dict()}, tmp_path / "model.pth")
    backbone = load_backbone(name, tmp_path / "model.pth", size)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.forward_head(plain.forward_features(images), pre_logits=True)
        assert torch.equal(backbone.model(images), expected)
    assert (backbone.mean, backbone.std) == (plain.pretrained_cfg["mean"], plain.pretrained_cfg["std"])
    assert backbone.head is None, "two classes of which no key says which is fake"


def test_a_family_whose_positions_cannot_be_resampled_is_said(tmp_path: Path) -> None:
    weights = timm.create_model("cait_xxs24_224", num_classes=0).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"shape of pos_embed is \(1, 196, 192\)"):
        load_backbone("cait_xxs24_224", tmp_path / "model.safetensors", 64)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Where timm looks for the weights of `test_vit`, instead of the hub."""

    def look(**changes: object) -> None:
        for name in ("test_vit", "test_vit.r160_in1k"):
            config = replace(_registry._model_pretrained_cfgs[name], hf_hub_id=None, **changes)
            monkeypatch.setitem(_registry._model_pretrained_cfgs, name, config)

    return look


def test_hub_weights_are_those_of_timm(hub: Callable[..., None], tmp_path: Path) -> None:
    published = timm.create_model("test_vit", pretrained=False).eval()
    torch.save(published.state_dict(), tmp_path / "published.pth")
    hub(file=str(tmp_path / "published.pth"), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    backbone = load_backbone("test_vit", "hub", 160)
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published.forward_head(published.forward_features(images), pre_logits=True)
        assert torch.equal(backbone.model(images), expected)
        assert torch.equal(load_backbone("test_vit.r160_in1k", "hub", 160).model(images), expected)
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    again = build_backbone(backbone.name, backbone.arguments)
    again.load_state_dict(backbone.model.state_dict(), strict=True)
    expected = resample_abs_pos_embed(published.pos_embed, [4, 4], num_prefix_tokens=1)
    assert torch.equal(load_backbone("test_vit", "hub", 64).model.pos_embed, expected)


def test_hub_weights_that_lack_a_key_are_an_error(hub: Callable[..., None], tmp_path: Path) -> None:
    weights = timm.create_model("test_vit", pretrained=False).state_dict()
    del weights["blocks.2.norm1.bias"]
    torch.save(weights, tmp_path / "published.pth")
    hub(file=str(tmp_path / "published.pth"))
    with pytest.raises(UserError, match="could not load the weights of test_vit"):
        load_backbone("test_vit", "hub", 160)


def test_a_hub_that_cannot_be_reached_is_one_sentence(hub: Callable[..., None]) -> None:
    with socket.socket() as closed:  # a port of this machine at which nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    hub(url=f"http://127.0.0.1:{port}/weights.pth")
    with pytest.raises(UserError, match="check the network") as caught:
        load_backbone("test_vit", "hub", 160)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_vit.of_nobody", "vit_base_patch32_plus_256"])
def test_a_hub_without_such_weights_is_an_error(name: str) -> None:
    with pytest.raises(UserError, match=name):
        load_backbone(name, "hub", 64)


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
