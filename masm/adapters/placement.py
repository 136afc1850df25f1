"""Putting subspaces into a timm vision transformer, and taking them out again."""

from __future__ import annotations

import copy

import torch
from torch import nn

from masm.adapters.baselines import probe
from masm.adapters.decompose import split
from masm.adapters.settings import AdapterSettings
from masm.adapters.subspace import FusedProjection, SubspaceLinear, plain_linear
from masm.errors import UserError

_FUSED = "attn.qkv"
_PARTS = ("q", "k", "v")  # the order in which timm stacks them in the fused weight
_PLACES = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def adapt(model: nn.Module, settings: AdapterSettings, initialise: bool = True) -> dict[str, SubspaceLinear]:
    """Freeze `model` and put trainable artifact subspaces into it, in place.

    At start the model computes what it did before (relative error at most 1e-5 in float32).

    Args:
        model: a timm vision transformer: `blocks[i]` has `attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2`.
        settings: what to adapt and with how many subspaces; the probe adapts nothing.
        initialise: False leaves the factors zero, for a state that is to be loaded over them: it saves
            the decompositions.

    Returns:
        The adapted layers by name, in the model's order; the parts of a fused qkv are layers of their own.

    Raises:
        UserError: a target that the model lacks, K r larger than a layer allows, or a weight that
            cannot be decomposed.
    """
    probe(model)
    if settings.total_rank == 0:
        return {}
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise UserError(f"{type(model).__name__} has no transformer blocks to adapt: name a timm ViT.")
    for index in range(len(blocks)):
        _adapt_block(model, f"blocks.{index}", settings, initialise)
    return adapted_layers(model)


def adapted_layers(model: nn.Module) -> dict[str, SubspaceLinear]:
    """The layers of `model` that hold artifact subspaces, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SubspaceLinear)}


def merge(model: nn.Module) -> nn.Module:
    """A copy of `model` with every adapted weight written back into a plain `nn.Linear`."""
    plain = copy.deepcopy(model)
    for name, module in reversed(list(plain.named_modules())):  # parts before the projection they make up
        if isinstance(module, SubspaceLinear | FusedProjection):
            plain.set_submodule(name, module.merged())
    return plain


def _adapt_block(model: nn.Module, block: str, settings: AdapterSettings, initialise: bool) -> None:
    fused = [part for part in _PARTS if part in settings.targets]
    if fused:
        name = f"{block}.{_FUSED}"
        linear = _linear(model, name, "/".join(fused))
        model.set_submodule(name, _split_fused(linear, name, settings, initialise))
    for target, place in _PLACES.items():
        if target in settings.targets:
            name = f"{block}.{place}"
            linear = _linear(model, name, target)
            model.set_submodule(name, _subspaces(linear, name, settings, initialise))


def _split_fused(fused: nn.Linear, name: str, settings: AdapterSettings, initialise: bool) -> FusedProjection:
    """q, k and v as layers of their own: a fused projection is three matrices, each with its own spectrum."""
    if fused.out_features % len(_PARTS):
        raise UserError(
            f"{name} has {fused.out_features} outputs, which is not three equal parts: take q, k and v out "
            "of adapter.targets."
        )
    weights = fused.weight.chunk(len(_PARTS))
    biases = fused.bias.chunk(len(_PARTS)) if fused.bias is not None else [None] * len(_PARTS)
    parts: dict[str, nn.Module] = {}
    for part, weight, bias in zip(_PARTS, weights, biases, strict=True):
        linear = plain_linear(weight, bias)
        adapted = part in settings.targets
        parts[part] = _subspaces(linear, f"{name}.{part}", settings, initialise) if adapted else linear
    return FusedProjection(parts)


def _subspaces(linear: nn.Linear, name: str, settings: AdapterSettings, initialise: bool) -> SubspaceLinear:
    layer = SubspaceLinear(linear, settings.subspaces, settings.rank)
    _check_rank(linear, name, settings)
    if initialise:
        _check_weight(linear, name)
        layer.initialise(split(linear.weight, settings.subspaces, settings.rank, settings.grouping))
    return layer


def _check_rank(linear: nn.Linear, name: str, settings: AdapterSettings) -> None:
    limit = min(linear.in_features, linear.out_features)
    if settings.total_rank > limit:
        raise UserError(
            f"{settings.subspaces} subspaces of rank {settings.rank} need more than the {limit} singular "
            f"values of {name} ({linear.out_features} x {linear.in_features}): lower rank or subspaces."
        )


def _check_weight(linear: nn.Linear, name: str) -> None:
    if not torch.isfinite(linear.weight).all():
        raise UserError(f"the weight of {name} holds values that are not finite: give another backbone file.")
    if not linear.weight.any():
        raise UserError(f"the weight of {name} is zero everywhere: give another backbone file.")


def _linear(model: nn.Module, name: str, target: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise UserError(
            f"target {target} matches nothing: {type(model).__name__} has no linear layer {name}. "
            "Change adapter.targets or the backbone."
        )
    return module
