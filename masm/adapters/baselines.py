"""Other ways to adapt a backbone, behind the same call as the method itself; each works in place on a frozen one."""

from __future__ import annotations

import math
from typing import cast

import torch
from timm.layers import RmsNorm
from torch import nn

from masm.adapters.settings import AdapterSettings
from masm.adapters.targets import find_sites
from masm.errors import UserError


def full(model: nn.Module) -> None:
    """Let everything learn."""
    model.requires_grad_(True)


def layernorm(model: nn.Module) -> None:
    """Let scale and shift of every normalisation layer learn (GenD, WACV 2026).

    Raises:
        UserError: there is nothing of the kind.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm | RmsNorm)]
    if not any(list(norm.parameters()) for norm in norms):
        raise UserError(f"{type(model).__name__} has no normalisation layer with a scale: choose another method.")
    for norm in norms:
        norm.requires_grad_(True)


def lora(model: nn.Module, settings: AdapterSettings, seed: int) -> None:
    """Put peft's low-rank updates W + B A onto the targets (LoRA, arXiv 2106.09685), without scaling or dropout.

    A fused layer gets one update of the rank of all its parts. B starts at zero and A is drawn by `seed`.

    Raises:
        UserError: peft is missing, a target matches nothing, or only a part of a fused layer is targeted.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"adapter.method lora needs peft ({error}): `pip install peft`.") from None
    sites = find_sites(model, settings.targets)
    for site in sites:
        if site.chosen != site.parts:
            raise UserError(
                f"lora updates {site.name} as a whole: name all of {', '.join(site.parts)} in adapter.targets, or "
                "none of them."
            )
    ranks = {site.name: len(site.parts) * settings.rank for site in sites}
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank,
            target_modules=list(ranks),
            rank_pattern=ranks,
            alpha_pattern=ranks,
        ),
        model,
    )
    generator = torch.Generator().manual_seed(seed)
    for name in ranks:
        update = model.get_submodule(f"{name}.lora_A.default")
        weight = cast(nn.Linear, update).weight
        drawn = nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=generator)
        weight.data.copy_(drawn)


def without_lora(module: nn.Module) -> nn.Module:
    """The plain layer that computes what a layer with peft's update does; any other module as it is."""
    if not hasattr(module, "lora_A"):
        return module
    module.merge(safe_merge=True)  # type: ignore[operator]
    return module.get_base_layer()  # type: ignore[operator]
