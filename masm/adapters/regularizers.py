"""The two penalties on the artifact subspaces, in thin form: nothing of size m x m, n x n is ever formed.

Stated in the abstract of MASM (arXiv 2601.01041): orthogonality makes the artifact subspaces
complementary, spectral consistency keeps the overall spectrum of the pretrained weights. The formulas
are ours. Both are means over the adapted layers, in float32 outside of autocast, and zero at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from masm.adapters.subspace import SubspaceLinear


def orthogonality(layers: Mapping[str, SubspaceLinear]) -> Tensor:
    """How far the subspaces are from orthonormal, from each other and from the semantic subspace.

    Per layer |A^T A - I|_F^2 + |B^T B - I|_F^2 with A = [U_sem | U_1 .. U_K] and B = [V_sem | V_1 .. V_K].
    On the longer side of a rectangular weight |U_sem^T u|^2 becomes |W_sem^T u|^2 / mean(S_sem^2): the
    same zeros, weighted by energy, and without U_sem. Returns a scalar; 0 without layers.
    """
    return _mean(layers, _orthogonality)


def spectral_consistency(layers: Mapping[str, SubspaceLinear]) -> Tensor:
    """How far the weight's energy, and each subspace's spectrum, are from the pretrained ones.

    Per layer | |W_hat|_F^2 - |W|_F^2 | / |W|_F^2 + sum_k |sort(|s_k|) - s_k(0)|^2 / (|W|_F^2 / min(m, n)),
    sorted descending. Returns a scalar; 0 without layers.
    """
    return _mean(layers, _spectral_consistency)


def _mean(layers: Mapping[str, SubspaceLinear], term: Callable[[SubspaceLinear], Tensor]) -> Tensor:
    if not layers:
        return torch.zeros(())
    device = next(iter(layers.values())).semantic.device.type
    with torch.autocast(device, enabled=False):
        return torch.stack([term(layer) for layer in layers.values()]).mean()


def _orthogonality(layer: SubspaceLinear) -> Tensor:
    U, _, V = layer.factors()
    overlap = _overlap(layer, U, layer.start_u, layer.semantic.T) + _overlap(layer, V, layer.start_v, layer.semantic)
    return _deviation(U) + _deviation(V) + 2 * overlap


def _deviation(X: Tensor) -> Tensor:
    """|X^T X - I|_F^2."""
    gram = X.T @ X
    return (gram - torch.eye(len(gram), device=X.device)).square().sum()


def _overlap(layer: SubspaceLinear, X: Tensor, start: Tensor, semantic: Tensor) -> Tensor:
    """Squared length of the columns of X (d, R) inside the semantic subspace of their side.

    `start` (d, R) are the pretrained artifact directions, `semantic` is W_sem with d columns.
    """
    triplets = min(semantic.shape)
    if len(X) == triplets:  # a complete basis: what is outside of the artifact directions is semantic
        return (X - start @ (start.T @ X)).square().sum()
    semantic_triplets = triplets - X.shape[1]
    if semantic_triplets == 0:
        return X.new_zeros(())
    return (semantic @ X).square().sum() / (layer.semantic_energy / semantic_triplets)


def _spectral_consistency(layer: SubspaceLinear) -> Tensor:
    U, s, V = layer.factors()
    start_energy = layer.start_s.square().sum()
    energy = layer.semantic_energy + start_energy
    cross = (s * (U * (layer.semantic @ V)).sum(dim=0)).sum()
    own = s @ ((U.T @ U) * (V.T @ V)) @ s
    change = 2 * cross + (own - start_energy)  # as a difference to the start: less |W|^2 it would cancel
    spectrum = s.abs().reshape(-1, layer.rank).sort(dim=1, descending=True).values
    drift = (spectrum - layer.start_s.reshape(-1, layer.rank)).square().sum()
    return change.abs() / energy + drift / (energy / min(layer.semantic.shape))
