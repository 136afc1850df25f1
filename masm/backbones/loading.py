"""Backbones are made, and load strictly: a file of another model is an error, never a half-random network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from masm.backbones.checkpoint import read_checkpoint
from masm.backbones.layout import Layout, Reading, read_as, recognise
from masm.errors import UserError

STARTER = Path(__file__).parents[1] / "starter"


@dataclass(frozen=True)
class Backbone:
    """A timm model without head, and what it takes to feed it and to build it again.

    `model` maps normalised images (B, 3, S, S) to features (B, D). `mean` and `std` normalise RGB in
    [0, 1]. `build_backbone(name, arguments)` makes the same architecture with random weights. `head` is
    weight (1, D) and bias (1,) of the logit "fake" where the weights are those of a fine-tuned detector.
    """

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    name: str
    arguments: dict[str, Any]
    head: tuple[Tensor, Tensor] | None = None


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
    except (TypeError, AssertionError, RuntimeError) as error:
        raise UserError(f"timm's {name} cannot be built with {arguments}: {error}. Name a ViT.") from error


def load_backbone(name: str, weights: str | Path, image_size: int, layout: Layout | None = None) -> Backbone:
    """Load a backbone for images of `image_size` pixels.

    Args:
        name: timm model name; for the starter its card decides.
        weights: "starter" (ships with the package), "hub" (timm downloads it), or a file with timm's or FSFM's
            weights, see `masm.backbones.layout`.
        image_size: side of the square input in pixels; position embeddings are resampled to it.
        layout: whose a file is, where its content does not say.

    Raises:
        UserError: unknown model, unreadable file, or weights that do not belong to this model.
    """
    if weights == "starter":
        return load_folder(STARTER, image_size)
    with torch.device("meta"):
        build_backbone(name, {"img_size": image_size})  # a wrong name is said before anything is read or fetched
    if weights == "hub":
        return _load_hub(name, image_size)
    path = Path(weights)
    reading = recognise(read_checkpoint(path), layout)
    arguments = {"img_size": image_size, **(reading.arguments or {})}
    model = build_backbone(name, arguments)
    _load_weights(model, reading, name, path)
    mean, std = reading.normalisation or _normalisation(model)
    return Backbone(model.eval(), mean, std, name, arguments, reading.head)


def load_folder(folder: Path, image_size: int) -> Backbone:
    """Load a backbone with its card, as `pipelines.pretrain` leaves them, for images of `image_size` pixels.

    Raises:
        UserError: the weights are not those of the model that card.json names.
    """
    path = folder / "model.safetensors"
    reading = read_as(read_checkpoint(path), "timm")
    card = json.loads((folder / "card.json").read_text())
    name, arguments = card["name"], {**card["arguments"], "img_size": image_size}
    model = build_backbone(name, arguments)
    _load_weights(model, reading, name, path)
    return Backbone(model.eval(), tuple(card["mean"]), tuple(card["std"]), name, arguments)


def _load_hub(name: str, image_size: int) -> Backbone:
    arguments = {"img_size": image_size}
    try:
        # With its own head, as timm lets keys be missing where the number of classes is another one.
        model = timm.create_model(name, pretrained=True, **arguments)
    except Exception as error:  # each of the hub's clients has exceptions of its own
        detail = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"timm could not load the weights of {name} from the hub ({type(error).__name__}: {detail}): check the "
            "network and the name's tag, or give a file."
        ) from error
    model.reset_classifier(0)
    mean, std = _normalisation(model)
    return Backbone(model.eval(), mean, std, name, arguments)


def _normalisation(model: nn.Module) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    config = cast(dict[str, Any], model.pretrained_cfg)
    return tuple(config["mean"]), tuple(config["std"])


def _load_weights(model: nn.Module, reading: Reading, name: str, path: Path) -> None:
    state = model.state_dict()
    expected = {key: value for key, value in state.items() if not key.startswith(reading.initial)}
    found = dict(reading.weights)
    if "pos_embed" in found and "pos_embed" in expected:
        found["pos_embed"] = _resample_positions(found["pos_embed"], model)
    if differences := state_differences(found, expected):
        raise UserError(
            f"{path} does not hold the weights of timm's {name} ({differences}): name the timm model that the file "
            "was saved from (`masm backbone inspect` lists which fit), or give another file."
        )
    model.load_state_dict({**state, **found})


def _resample_positions(positions: Tensor, model: VisionTransformer) -> Tensor:
    """Position embeddings (1, tokens, D) interpolated to the model's grid of patches; others as they are."""
    if not hasattr(model, "no_embed_class"):  # a family whose positions are laid out in another way
        return positions
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    patches = positions.shape[1] - prefix if positions.ndim == 3 else 0
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        return positions  # another model's, which the comparison of shapes will say
    with torch.no_grad():
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
