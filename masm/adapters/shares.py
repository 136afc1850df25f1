"""Which artifact subspace fired: what each of them adds to an image's logit (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from masm.adapters.subspace import SubspaceLinear


@contextmanager
def restored_subspace(layers: Mapping[str, SubspaceLinear], index: int) -> Iterator[None]:
    """Put subspace `index` of all layers back to its pretrained value, for as long as the context lasts."""
    factors = [layer.pieces()[index] for layer in layers.values()]
    trained = [value.detach().clone() for value in factors]
    try:
        _set(factors, [layer.start.split(layer.rank)[index] for layer in layers.values()])
        yield
    finally:
        _set(factors, trained)


def shares(logits: Tensor, restored: Tensor) -> Tensor:
    """Shares (B, K) of the subspaces in what training did to the logits.

    share_k = the logit's change by subspace k over the sum of the absolute changes by all of them: positive
    where the subspace speaks for fake. Absolute shares of an image add up to 1, or are all 0 where nothing
    has changed.

    Args:
        logits: (B,) of the adapted model.
        restored: (B, K), with one subspace after the other at its pretrained value in all layers.
    """
    changes = logits[:, None] - restored
    total = changes.abs().sum(dim=1, keepdim=True)
    return torch.where(total > 0, changes / total, torch.zeros_like(changes))


@torch.no_grad()
def _set(factors: list[Tensor], values: list[Tensor]) -> None:
    for factor, value in zip(factors, values, strict=True):
        factor.copy_(value)
