"""FSFM's checkpoints: what fails silently when it is missed is caught here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from masm.backbones import load_backbone
from masm.detector import Detector
from masm.errors import UserError
from tests.adapters.models import adapter
from tests.backbones import fsfm

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
TOLERANCE = 1e-4
SWAPS: dict[str, dict[str, Any]] = {
    "timm's normalisation": {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    "ImageNet's normalisation": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "mean over all tokens": {"pooling": "all"},
    "class token": {"pooling": "class"},
}


def written(folder: Path, checkpoint: dict[str, object]) -> Path:
    torch.save(checkpoint, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def logits(weights: dict[str, Tensor], **changes: Any) -> Tensor:
    """Of "fake", which is the first of the two, over "real"."""
    both = (
        fsfm.features(IMAGES, weights, **changes) @ weights["head.weight"].double().T + weights["head.bias"].double()
    )
    return both[:, 0] - both[:, 1]


@pytest.fixture
def fine_tuned(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    checkpoint = fsfm.fine_tuned(fsfm.encoder())
    return written(tmp_path, checkpoint), checkpoint["model"]


@pytest.fixture
def pretrained(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    checkpoint = fsfm.pretrained(fsfm.encoder())
    return written(tmp_path, checkpoint), checkpoint["model"]


@pytest.mark.parametrize("method", ["probe", "masm", "effort", "lora", "full"])
def test_every_method_starts_from_the_fine_tuned_logit(fine_tuned: tuple[Path, dict], method: str) -> None:
    path, weights = fine_tuned
    model = Detector.build(load_backbone(fsfm.NAME, path, 64), adapter(method=method), 0).eval()
    torch.testing.assert_close(model(IMAGES).double(), logits(weights), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("swap", SWAPS)
def test_another_normalisation_or_pooling_would_be_seen(fine_tuned: tuple[Path, dict], swap: str) -> None:
    """What the tests above compare with would differ by far more than they let pass."""
    right, wrong = logits(fine_tuned[1]), logits(fine_tuned[1], **SWAPS[swap])
    assert (right - wrong).abs().max() > 100 * TOLERANCE * (1 + right.abs().max())


def test_the_order_of_classes_would_be_seen(fine_tuned: tuple[Path, dict]) -> None:
    assert logits(fine_tuned[1]).abs().max() > 100 * TOLERANCE


def test_the_head_of_unit_features_is_drawn(fine_tuned: tuple[Path, dict]) -> None:
    """layernorm's head sees features of length one: FSFM's head would give it other logits, so it starts anew."""
    backbone = load_backbone(fsfm.NAME, fine_tuned[0], 64)
    assert backbone.head is not None
    first = Detector.build(backbone, adapter(method="layernorm"), 5)
    assert not torch.equal(first.head.weight, backbone.head[0])
    assert torch.equal(first.head.weight, Detector.build(backbone, adapter(method="layernorm"), 5).head.weight)


@pytest.mark.parametrize("method", ["probe", "masm"])
def test_a_saved_detector_comes_back_alike(fine_tuned: tuple[Path, dict], tmp_path: Path, method: str) -> None:
    model = Detector.build(load_backbone(fsfm.NAME, fine_tuned[0], 64), adapter(method=method), 0).eval()
    model.save(tmp_path / "detector", {})
    again = Detector.load(tmp_path / "detector").eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert (tuple(again.architecture.mean), tuple(again.architecture.std)) == (fsfm.MEAN, fsfm.STD)


def test_a_pretrained_checkpoint_starts_its_norm_as_timm_does(pretrained: tuple[Path, dict]) -> None:
    path, weights = pretrained
    backbone = load_backbone(fsfm.NAME, path, 64)
    assert backbone.head is None
    normalised = (IMAGES - torch.tensor(backbone.mean).reshape(3, 1, 1)) / torch.tensor(backbone.std).reshape(3, 1, 1)
    with torch.no_grad():
        found = backbone.model(normalised).double()
    torch.testing.assert_close(found, fsfm.features(IMAGES, weights), rtol=TOLERANCE, atol=TOLERANCE)
    left_over = weights | {f"fc_norm.{name}": weights[f"norm.{name}"] for name in ("weight", "bias")}
    assert (found - fsfm.features(IMAGES, left_over)).abs().max() > 100 * TOLERANCE


def test_fixed_positions_are_resampled_to_the_crop(fine_tuned: tuple[Path, dict]) -> None:
    model = load_backbone(fsfm.NAME, fine_tuned[0], 96).model
    assert model.pos_embed.shape == (1, 37, fsfm.WIDTH)
    assert torch.equal(model.pos_embed[:, 0], fine_tuned[1]["pos_embed"][:, 0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fc_norm.weight": torch.ones(fsfm.WIDTH)}, "unexpected fc_norm.weight"),
        ({"head.weight": torch.ones(2, fsfm.WIDTH)}, "unexpected head.weight"),
        ({"teacher.cls_token": torch.ones(1)}, "unexpected teacher.cls_token"),
        ({"blocks.3.attn.qkv.bias": None}, "missing blocks.3.attn.qkv.bias"),
        ({"cls_token": None}, "missing cls_token"),
    ],
)
def test_other_keys_than_the_heads_are_errors(
    pretrained: tuple[Path, dict], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    weights = {name: value for name, value in (pretrained[1] | change).items() if value is not None}
    with pytest.raises(UserError, match=said):
        load_backbone(fsfm.NAME, written(tmp_path, {"model": weights}), 64)


@pytest.mark.parametrize(
    ("name", "said"), [("vit_tiny_patch16_224", "inspect` lists which fit"), ("eva02_tiny_patch14_224", "ViT")]
)
def test_another_architecture_is_an_error(fine_tuned: tuple[Path, dict], name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone(name, fine_tuned[0], 64)


def test_a_fine_tuned_file_needs_its_norm(fine_tuned: tuple[Path, dict], tmp_path: Path) -> None:
    weights = {name: value for name, value in fine_tuned[1].items() if name != "fc_norm.bias"}
    with pytest.raises(UserError, match=r"missing fc_norm\.bias"):
        load_backbone(fsfm.NAME, written(tmp_path, {"model": weights}), 64)


def test_what_the_keys_do_not_say_is_asked(fine_tuned: tuple[Path, dict], tmp_path: Path) -> None:
    """The same tensors in a plain file can be those of any detector that averages its tokens."""
    save_file(fine_tuned[1], tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match=r"set backbone\.layout to fsfm or timm"):
        load_backbone(fsfm.NAME, tmp_path / "plain.safetensors", 64)
    asked = load_backbone(fsfm.NAME, tmp_path / "plain.safetensors", 64, "fsfm")
    assert asked.mean == fsfm.MEAN
    assert asked.head is not None
    assert torch.equal(asked.head[0], load_backbone(fsfm.NAME, fine_tuned[0], 64).head[0])
    with pytest.raises(UserError, match=r"unexpected fc_norm"):  # this timm model has its norm before the pooling
        load_backbone(fsfm.NAME, tmp_path / "plain.safetensors", 64, "timm")


def test_an_encoder_alone_is_asked_for(tmp_path: Path) -> None:
    """Other masked autoencoders are published in the same form, with ImageNet's normalisation."""
    weights = fsfm.encoder() | fsfm.drawn(1, {"norm.weight": (fsfm.WIDTH,), "norm.bias": (fsfm.WIDTH,)})
    path = written(tmp_path, {"model": weights})
    with pytest.raises(UserError, match=r"set backbone\.layout"):
        load_backbone(fsfm.NAME, path, 64)
    assert load_backbone(fsfm.NAME, path, 64, "fsfm").mean == fsfm.MEAN
    assert load_backbone(fsfm.NAME, path, 64, "timm").mean == (0.5, 0.5, 0.5)


def test_a_head_of_other_classes_is_not_fsfm(fine_tuned: tuple[Path, dict], tmp_path: Path) -> None:
    weights = fine_tuned[1] | {"head.weight": torch.zeros(5, fsfm.WIDTH), "head.bias": torch.zeros(5)}
    with pytest.raises(UserError, match="2 classes"):
        load_backbone(fsfm.NAME, written(tmp_path, {"model": weights}), 64, "fsfm")
