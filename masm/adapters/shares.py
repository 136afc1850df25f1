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
    trained = {name: [value.detach().clone() for value in _factors(layer, index)] for name, layer in layers.items()}
    try:
        for layer in layers.values():
            _set(layer, index, _pretrained(layer, index))
        yield
    finally:
        for name, layer in layers.items():
            _set(layer, index, trained[name])


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


def _factors(layer: SubspaceLinear, index: int) -> list[Tensor]:
    one = layer.subspaces[index]
    return [one.get_parameter(name) for name in ("U", "s", "V")]


def _pretrained(layer: SubspaceLinear, index: int) -> list[Tensor]:
    columns = slice(index * layer.rank, (index + 1) * layer.rank)
    return [layer.start_u[:, columns], layer.start_s[columns], layer.start_v[:, columns]]


@torch.no_grad()
def _set(layer: SubspaceLinear, index: int, values: list[Tensor]) -> None:
    for factor, value in zip(_factors(layer, index), values, strict=True):
        factor.copy_(value)
