"""Adapting a timm vision transformer in place, and making a plain one of it again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from masm.adapters.baselines import full, layernorm, lora, without_lora
from masm.adapters.cache import DecompositionCache
from masm.adapters.decompose import Triplets, smallest_triplets, split
from masm.adapters.settings import AdapterSettings
from masm.adapters.subspace import FusedProjection, SubspaceLinear, plain_linear
from masm.adapters.targets import Site, find_sites
from masm.errors import UserError

Decompose = Callable[[Tensor, int], Triplets]


def adapt(
    model: nn.Module, settings: AdapterSettings, initialise: bool = True, cache: Path | None = None, seed: int = 0
) -> dict[str, SubspaceLinear]:
    """Freeze `model` and let a part of it, or something put into it, learn; in place.

    At start the model computes what it did before (relative error at most 1e-5 in float32).

    Args:
        model: a timm vision transformer; `masm.adapters.targets` knows the layouts of its blocks.
        settings: the method, what it adapts, and with how many subspaces.
        initialise: False leaves the factors zero, for a state that is to be loaded over them: it saves
            the decompositions.
        cache: a folder that keeps decompositions; None makes them anew.
        seed: draws what the method draws (of these, LoRA alone does).

    Returns:
        The layers with artifact subspaces by name, in the model's order; the parts of a fused projection are
        layers of their own. None for methods without subspaces.

    Raises:
        UserError: a target that the model lacks, K r larger than a layer allows, or a weight that
            cannot be decomposed.
    """
    model.requires_grad_(False)
    if plan := settings.subspace_plan:
        decompose = DecompositionCache(cache) if cache else smallest_triplets
        for site in find_sites(model, plan.targets):
            layer = _with_subspaces(model, site, plan, decompose if initialise else None)
            model.set_submodule(site.name, layer)
        _call_fused_layers(model, True)
    elif settings.method == "lora":
        lora(model, settings, seed)
        _call_fused_layers(model, True)
    elif settings.method == "layernorm":
        layernorm(model)
    elif settings.method == "full":
        full(model)
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
        elif name and (linear := without_lora(module)) is not module:
            plain.set_submodule(name, linear)
    _call_fused_layers(plain, False)
    return plain


def _with_subspaces(model: nn.Module, site: Site, plan: AdapterSettings, decompose: Decompose | None) -> nn.Module:
    """The layer at `site` with subspaces in its chosen parts, each with its own spectrum."""
    linear = cast(nn.Linear, model.get_submodule(site.name))
    if len(site.parts) == 1:
        return _subspaces(linear, site.name, plan, decompose)
    weights = linear.weight.chunk(len(site.parts))
    biases = linear.bias.chunk(len(site.parts)) if linear.bias is not None else [None] * len(site.parts)
    parts: dict[str, nn.Module] = {}
    for part, weight, bias in zip(site.parts, weights, biases, strict=True):
        plain = plain_linear(weight, bias)
        chosen = part in site.chosen
        parts[part] = _subspaces(plain, f"{site.name}.{part}", plan, decompose) if chosen else plain
    return FusedProjection(parts)


def _subspaces(linear: nn.Linear, name: str, plan: AdapterSettings, decompose: Decompose | None) -> SubspaceLinear:
    layer = SubspaceLinear(linear, plan.subspaces, plan.rank)
    _check_rank(linear, name, plan)
    if decompose is not None:
        _check_weight(linear, name)
        layer.initialise(split(linear.weight, plan.subspaces, plan.rank, plan.grouping, decompose))
    return layer


def _check_rank(linear: nn.Linear, name: str, plan: AdapterSettings) -> None:
    limit = min(linear.in_features, linear.out_features)
    if plan.total_rank > limit:
        raise UserError(
            f"{plan.subspaces} subspaces of rank {plan.rank} need more than the {limit} singular "
            f"values of {name} ({linear.out_features} x {linear.in_features}): lower rank or subspaces."
        )


def _check_weight(linear: nn.Linear, name: str) -> None:
    largest = torch.linalg.vector_norm(linear.weight.detach(), torch.inf)
    if not torch.isfinite(largest):
        raise UserError(f"the weight of {name} holds values that are not finite: give another backbone file.")
    if not largest:
        raise UserError(f"the weight of {name} is zero everywhere: give another backbone file.")


def _call_fused_layers(model: nn.Module, called: bool) -> None:
    """Have EVA's and BEiT's attention call its fused layer and add the bias after it, or not.

    By default it reads the layer's weight and passes its forward by, which would leave out what was adapted.
    """
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = called  # type: ignore[assignment]
