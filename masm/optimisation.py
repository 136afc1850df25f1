"""What a step does beside the model: the penalties' gradient, the clipping, the learning rate, the optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from masm.adapters import SubspaceLinear, penalty
from masm.detector import Detector

WARMUP_SHARE = 0.1
"""Share of the steps over which the learning rate rises, before it falls along a cosine."""


def make_optimizer(detector: Detector, lr: float, head_lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over what of the detector learns; fused, since many subspaces are many small tensors."""
    return torch.optim.AdamW(detector.parameter_groups(lr, head_lr, weight_decay), fused=True)


def add_penalty(layers: Mapping[str, SubspaceLinear], lambda_orth: float, lambda_spec: float) -> None:
    """Add the penalties' gradient to the one that the factors hold."""
    if not layers or not (lambda_orth or lambda_spec):
        return
    factors = [piece for layer in layers.values() for piece in layer.pieces()]
    gradients = torch.autograd.grad(penalty(layers, lambda_orth, lambda_spec), factors)
    torch._foreach_add_([cast(Tensor, factor.grad) for factor in factors], gradients)


def clip_gradients(optimizer: torch.optim.Optimizer, norm: float) -> Tensor:
    """Scale all gradients down together where their norm is greater; returns the norm () that they had."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear rise over the first tenth of the steps, then a half cosine down to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
