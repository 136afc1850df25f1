"""Where the matrices that can be adapted lie in the blocks of timm's vision transformers.

Names are the same in every layout: `q` is a third of a fused `attn.qkv` or the whole of `attn.q_proj`, and
`fc1_g` (the gate's) and `fc1_x` are the halves of a packed gated MLP's `fc1` or layers of their own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

from timm.layers import GluMlp
from torch import nn

from masm.errors import UserError

_LAYERS = {
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc1_g": "mlp.fc1_g",
    "fc1_x": "mlp.fc1_x",
    "fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class Site:
    """A linear layer that holds targeted matrices.

    Attributes:
        name: the layer's in the model.
        parts: the matrices stacked in its weight, in their order; one where the layer is the matrix.
        chosen: those of them that are targeted.
    """

    name: str
    parts: tuple[str, ...]
    chosen: tuple[str, ...]


def find_sites(model: nn.Module, targets: Collection[str]) -> list[Site]:
    """The layers of `model` that hold the targets, block after block.

    Raises:
        UserError: the model has no blocks, a block lacks a target, or a fused layer is not of equal parts.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UserError(f"{type(model).__name__} has no transformer blocks to adapt: name a timm ViT.")
    return [site for index, block in enumerate(blocks) for site in _block_sites(f"blocks.{index}", block, targets)]


def _block_sites(name: str, block: nn.Module, targets: Collection[str]) -> list[Site]:
    layers = _layers(block)
    known = [part for parts in layers.values() for part in parts]
    for target in targets:
        if target not in known:
            raise UserError(
                f"target {target} matches nothing in {name} ({type(block).__name__}), which has "
                f"{', '.join(known) or 'none of the known matrices'}: change adapter.targets or the backbone."
            )
    sites = []
    for layer, parts in layers.items():
        if chosen := tuple(part for part in parts if part in targets):
            _check_parts(f"{name}.{layer}", cast(nn.Linear, block.get_submodule(layer)), parts)
            sites.append(Site(f"{name}.{layer}", parts, chosen))
    return sites


def _layers(block: nn.Module) -> dict[str, tuple[str, ...]]:
    """The linear layers of a block and the matrices stacked in each."""
    layers = {"attn.qkv": ("q", "k", "v"), **{layer: (target,) for target, layer in _LAYERS.items()}}
    mlp = getattr(block, "mlp", None)
    if isinstance(mlp, GluMlp):
        layers["mlp.fc1"] = ("fc1_x", "fc1_g") if mlp.gate_last else ("fc1_g", "fc1_x")
    return {layer: parts for layer, parts in layers.items() if _is_linear(block, layer)}


def _is_linear(block: nn.Module, name: str) -> bool:
    try:
        return isinstance(block.get_submodule(name), nn.Linear)
    except AttributeError:
        return False


def _check_parts(name: str, layer: nn.Linear, parts: tuple[str, ...]) -> None:
    if layer.out_features % len(parts):
        raise UserError(
            f"{name} has {layer.out_features} outputs, which is not {len(parts)} equal parts: take "
            f"{', '.join(parts)} out of adapter.targets."
        )
