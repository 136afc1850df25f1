"""Where a backbone's weights come from: the starter that ships, a safetensors file, or the hub.

A backbone is a plain timm vision transformer without a classification head. Weights from a file load
strictly: a file that does not belong to the named model is an error, never a half-random network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from masm.errors import UserError

STARTER = Path(__file__).parent / "starter"
_HEADS = ("head.", "fc_norm.")  # what a classifier's file may hold beyond the backbone


@dataclass(frozen=True)
class Backbone:
    """A timm model without head, and what it takes to feed it and to build it again.

    `model` maps normalised images (B, 3, S, S) to features (B, D). `mean` and `std` normalise RGB in
    [0, 1]. `build_backbone(name, arguments)` makes the same architecture with random weights.
    """

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    arguments: dict[str, Any]


def build_backbone(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A randomly initialised timm model `name` without head, for `arguments` of `timm.create_model`.

    Raises:
        UserError: timm has no model of that name, or the model does not take these arguments.
    """
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see timm.list_models()."
        raise UserError(f"timm has no model named {name!r}: {hint}")
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except (TypeError, AssertionError) as error:
        raise UserError(f"timm's {name} cannot be built with {arguments}: {error}. Name a ViT.") from error


def load_backbone(name: str, weights: str | Path, image_size: int) -> Backbone:
    """Load a backbone for images of `image_size` pixels.

    Args:
        name: timm model name; for the starter its card decides.
        weights: "starter" (ships with the package), "hub" (timm downloads it), or a .safetensors file.
        image_size: side of the square input in pixels; position embeddings are resampled to it.

    Raises:
        UserError: unknown model, unreadable file, or weights that do not belong to this model.
    """
    if weights == "starter":
        return _load_starter(image_size)
    arguments = {"img_size": image_size}
    model = build_backbone(name, arguments)
    if weights == "hub":
        model = timm.create_model(name, pretrained=True, num_classes=0, **arguments)
    else:
        _load_weights(model, read_weights(Path(weights)), name, Path(weights))
    config = cast(dict[str, Any], model.pretrained_cfg)
    return Backbone(model.eval(), tuple(config["mean"]), tuple(config["std"]), name, arguments)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; UserError where it is missing or is something else."""
    if not path.is_file():
        raise UserError(f"backbone weights {path} are missing: give a .safetensors file, 'starter' or 'hub'.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no readable safetensors file ({error}): convert or fetch it anew.") from error


def _load_starter(image_size: int) -> Backbone:
    path = STARTER / "model.safetensors"
    weights = read_weights(path)
    card = json.loads((STARTER / "card.json").read_text())
    name, arguments = card["name"], {**card["arguments"], "img_size": image_size}
    model = build_backbone(name, arguments)
    _load_weights(model, weights, name, path)
    return Backbone(model.eval(), tuple(card["mean"]), tuple(card["std"]), name, arguments)


def _load_weights(model: nn.Module, weights: dict[str, Tensor], name: str, path: Path) -> None:
    expected = model.state_dict()
    found = {key: value for key, value in weights.items() if key in expected or not key.startswith(_HEADS)}
    if "pos_embed" in found and "pos_embed" in expected:
        found["pos_embed"] = _resample_positions(found["pos_embed"], model)
    if differences := state_differences(found, expected):
        raise UserError(
            f"{path} does not hold the weights of timm's {name} ({differences}): "
            "name the timm model that the file was saved from, or give another file."
        )
    model.load_state_dict(found)


def _resample_positions(positions: Tensor, model: VisionTransformer) -> Tensor:
    """Position embeddings (1, tokens, D) interpolated to the model's grid of patches."""
    with torch.no_grad():
        prefix = 0 if model.no_embed_class else model.num_prefix_tokens
        return resample_abs_pos_embed(positions, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


def state_differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """In which tensors one state differs from another, in names or shapes; empty where it does not."""
    missing = [f"missing {key}" for key in expected if key not in found]
    unexpected = [f"unexpected {key}" for key in found if key not in expected]
    shapes = [
        f"shape of {key} is {tuple(found[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    problems = missing + unexpected + shapes
    listed = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
    return f"{len(problems)} keys differ: {listed}" if problems else ""
