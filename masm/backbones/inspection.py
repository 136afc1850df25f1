"""What a weight file is, before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from masm.backbones.checkpoint import Checkpoint, read_checkpoint
from masm.backbones.layout import FSFM_CLASSES, Colour, Kind, possible_kinds, read_as
from masm.backbones.loading import build_backbone, state_differences
from masm.errors import UserError

_WORDS = {
    192: "tiny", 256: "wee pwee dwee dpwee xsmall", 320: "little dlittle", 384: "small", 512: "medium mediumd",
    640: "betwixt", 768: "base", 832: "so150m2", 896: "so150m plus", 1024: "large intern300m", 1152: "so400m",
    1280: "huge", 1408: "giant", 1536: "giant giantopt gigantic", 1664: "gigantic", 2432: "5b", 4096: "7b",
}  # fmt: skip
"""timm's words for a width: of some 1400 models they leave few to be compared key by key."""


@dataclass(frozen=True)
class Fit:
    """A timm model that has a file's tensors, and how its images are pooled and normalised if it is the one."""

    kind: Kind
    name: str
    pooling: str
    mean: Colour
    std: Colour


@dataclass(frozen=True)
class Inspection:
    """What a weight file holds.

    Attributes:
        sha256: of the file.
        kinds: what it can be; more than one where backbone.layout must say.
        parameters: number of them in the backbone.
        embed_dim, depth, patch_size: width, blocks, and side of a patch in pixels; None where it is no ViT of
            timm's.
        tokens, image_size: position embeddings, and the side of the image that they make up, in pixels.
        left_out: groups of tensors that a backbone has no place for.
        classes: what a head's logits stand for, in their order; None where it is left out or there is none.
        fits: timm's models with these tensors. Heads, pooling and activations leave no trace in a file, so that
            more than one can fit.
    """

    path: Path
    sha256: str
    kinds: tuple[Kind, ...]
    parameters: int
    embed_dim: int | None
    depth: int
    patch_size: int | None
    tokens: int | None
    image_size: int | None
    left_out: tuple[str, ...]
    classes: tuple[str, ...] | None
    fits: tuple[Fit, ...]


def inspect_file(path: Path) -> Inspection:
    """Read a weight file, or the folder of a detector, and say what it is.

    Raises:
        UserError: it cannot be read without running code, is damaged, or holds no weights.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    kinds = possible_kinds(checkpoint)
    reading = read_as(checkpoint, kinds[0])
    weights = {name.removeprefix("backbone."): value for name, value in reading.weights.items()}
    patches = weights.get("patch_embed.proj.weight")
    width, patch_size = (None, None)
    if patches is not None and patches.ndim == 4:
        width, patch_size = patches.shape[0], patches.shape[-1]
    tokens, image_size = _positions(weights.get("pos_embed"), patch_size)
    is_detector = kinds == ("masm detector",)
    return Inspection(
        path=file,
        sha256=file_hash(file),
        kinds=kinds,
        parameters=sum(value.numel() for value in weights.values()),
        embed_dim=width,
        depth=len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        patch_size=patch_size,
        tokens=tokens,
        image_size=image_size,
        left_out=() if is_detector else tuple(sorted({name.split(".")[0] for name in reading.left_out})),
        classes=FSFM_CLASSES if reading.head is not None else None,
        fits=_recorded(file) if is_detector else _fits(checkpoint, kinds, width, patch_size, image_size),
    )


def file_hash(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _positions(embeddings: Tensor | None, patch_size: int | None) -> tuple[int | None, int | None]:
    """How many position embeddings there are, and the side of the square image that they make up."""
    if embeddings is None or embeddings.ndim != 3 or patch_size is None:
        return None, None
    tokens = embeddings.shape[1]
    return tokens, math.isqrt(tokens) * patch_size  # the few tokens before the patches' do not make up a row


def _fits(
    checkpoint: Checkpoint, kinds: tuple[Kind, ...], width: int | None, patch_size: int | None, image_size: int | None
) -> tuple[Fit, ...]:
    names = sorted(candidates(width, patch_size), key=lambda name: (not name.startswith("vit_"), len(name), name))
    found = (_fit(checkpoint, kind, name, image_size) for kind in kinds for name in names)  # the plain ones first
    return tuple(fit for fit in found if fit is not None)


def candidates(width: int | None, patch_size: int | None) -> list[str]:
    """timm's models that have this width and patch by their names."""
    words = _WORDS.get(width or 0, "").split()
    return [
        name for name in timm.list_models(f"*patch{patch_size}*") if any(f"_{word}_" in f"{name}_" for word in words)
    ]


def _fit(checkpoint: Checkpoint, kind: Kind, name: str, image_size: int | None) -> Fit | None:
    reading = read_as(checkpoint, kind)
    size = {"img_size": image_size} if image_size else {}
    try:
        with torch.device("meta"):
            model: Any = build_backbone(name, {**size, **(reading.arguments or {})})
    except UserError:
        return None
    state = model.state_dict()
    expected = {key: value for key, value in state.items() if not key.startswith(reading.initial)}
    if state_differences(reading.weights, expected):
        return None
    config: Mapping[str, Any] = model.pretrained_cfg
    mean, std = reading.normalisation or (tuple(config["mean"]), tuple(config["std"]))
    return Fit(kind, name, model.global_pool, mean, std)


def _recorded(path: Path) -> tuple[Fit, ...]:
    """The model that a detector's own description names; none where that is not beside the weights."""
    try:
        stored = json.loads(path.with_name("detector.json").read_text())["architecture"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    pooling = stored["arguments"].get("global_pool") or "timm's own"
    return (Fit("masm detector", stored["name"], pooling, tuple(stored["mean"]), tuple(stored["std"])),)
