"""The two penalties on the artifact subspaces, in thin form: nothing of size m x m, n x n is ever formed.

Stated in the abstract of MASM (arXiv 2601.01041): orthogonality makes the artifact subspaces
complementary, spectral consistency keeps the overall spectrum of the pretrained weights. The formulas
are ours. Both are means over the adapted layers, in float32 outside of autocast, and zero at the start.

Orthogonality, per layer: |A^T A - I|_F^2 + |B^T B - I|_F^2 with A = [U_sem | U_1 .. U_K] and
B = [V_sem | V_1 .. V_K]. On the longer side of a rectangular weight |U_sem^T u|^2 becomes
|W_sem^T u|^2 / mean(S_sem^2): the same zeros, weighted by energy, and without U_sem.

Spectral consistency, per layer: | |W_hat|_F^2 - |W|_F^2 | / |W|_F^2
+ sum_k |sort(|s_k|) - s_k(0)|^2 / (|W|_F^2 / min(m, n)), sorted descending.

The gradients are written out, not left to autograd: W_sem v, W_sem^T u and, for a rectangular weight,
W_sem W_sem^T u serve values and gradients of both, in two passes over W_sem. All else is done for the layers
of one shape at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from masm.adapters.functional import Blocks
from masm.adapters.subspace import SubspaceLinear


def penalty(layers: Mapping[str, SubspaceLinear], lambda_orth: float, lambda_spec: float) -> Tensor:
    """lambda_orth x orthogonality + lambda_spec x spectral consistency: a scalar, differentiable once.

    0 without layers.
    """
    alike = defaultdict(list)
    for layer in layers.values():
        alike[layer.semantic.shape, layer.start.shape, layer.rank].append(layer)
    weights = lambda_orth / max(1, len(layers)), lambda_spec / max(1, len(layers))
    return sum(
        (
            cast(
                Tensor, _Penalty.apply(torch.cat([one for layer in group for one in layer.pieces()]), group, *weights)
            )
            for group in alike.values()
        ),
        start=torch.zeros(()),
    )


class _Penalty(torch.autograd.Function):
    """The penalties of layers of one shape, summed up; their gradient is found with their value."""

    @staticmethod
    def forward(
        ctx: Any, factors: Tensor, layers: list[SubspaceLinear], lambda_orth: float, lambda_spec: float
    ) -> Tensor:
        with torch.autocast(factors.device.type, enabled=False):
            value, gradient = _evaluate(_gather(factors, layers), lambda_orth, lambda_spec)
        ctx.save_for_backward(gradient.flatten(0, 1))
        return value.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return weight * gradient, None, None, None


class _Group(NamedTuple):
    """L layers of one shape; u, v and s are the factors, a = (W_sem v)^T and b = (W_sem^T u)^T by rows.

    `far` is b W_sem^T where U is the longer side, a W_sem where V is, and None for a square weight.
    `energy` is |W_sem|^2 (L,).
    """

    now: Blocks
    start: Blocks
    a: Tensor
    b: Tensor
    far: Tensor | None
    energy: Tensor
    rank: int


def _gather(factors: Tensor, layers: list[SubspaceLinear]) -> _Group:
    out_features, in_features = layers[0].semantic.shape
    now = Blocks.of(factors.unflatten(0, (len(layers), -1)), out_features)
    products = [_through(layer.semantic, u, v) for layer, u, v in zip(layers, now.u, now.v, strict=True)]
    a, b, far = zip(*products, strict=True)
    return _Group(
        now,
        Blocks.of(torch.stack([layer.start for layer in layers]), out_features),
        torch.stack(a),
        torch.stack(b),
        None if out_features == in_features else torch.stack(far),
        torch.stack([layer.semantic_energy for layer in layers]),
        layers[0].rank,
    )


def _through(semantic: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """a (R, m), b (R, n) and the product on the longer side, in two passes over W_sem (m, n)."""
    rank, (m, n) = len(u), semantic.shape
    if m == n:
        return v @ semantic.T, u @ semantic, None
    if m > n:
        b = u @ semantic
        a, far = (torch.cat([v, b]) @ semantic.T).split(rank)
        return a, b, far
    a = v @ semantic.T
    b, far = (torch.cat([u, a]) @ semantic).split(rank)
    return a, b, far


def _evaluate(group: _Group, lambda_orth: float, lambda_spec: float) -> tuple[Tensor, Tensor]:
    """The weighted sum of each layer (L,), and its gradient with respect to the factors (L, R, m + n + 1)."""
    u, v, s = group.now
    identity = torch.eye(u.shape[-2], dtype=u.dtype, device=u.device)
    gram_u, gram_v, pairs = u @ u.mT, v @ v.mT, s @ s.mT
    overlap_u, overlap_v = _overlaps(group)
    orthogonality = _squares(gram_u - identity) + _squares(gram_v - identity) + 2 * (overlap_u.value + overlap_v.value)

    start_energy = _squares(group.start.s)
    total_energy = group.energy + start_energy
    lengths = (u * group.a).sum(dim=-1, keepdim=True)  # u_i^T W_sem v_i
    own = (pairs * gram_u * gram_v).sum(dim=(1, 2))
    change = 2 * (s * lengths).sum(dim=(1, 2)) + (own - start_energy)  # less |W|^2 instead, it would cancel
    drift = _spectrum_drift(group)
    scale = min(u.shape[-1], v.shape[-1]) / total_energy
    spectral_consistency = change.abs() / total_energy + scale * drift.value

    slope = (2 * lambda_spec * change.sign() / total_energy)[:, None, None]
    mix_u = 4 * lambda_orth * (gram_u - identity) + slope * pairs * gram_v
    mix_v = 4 * lambda_orth * (gram_v - identity) + slope * pairs * gram_u
    gradient = [
        torch.baddbmm(2 * lambda_orth * overlap_u.gradient + slope * s * group.a, mix_u, u),
        torch.baddbmm(2 * lambda_orth * overlap_v.gradient + slope * s * group.b, mix_v, v),
        slope * (lengths + (gram_u * gram_v) @ s) + lambda_spec * scale[:, None, None] * drift.gradient,
    ]
    return lambda_orth * orthogonality + lambda_spec * spectral_consistency, torch.cat(gradient, dim=-1)


class _Term(NamedTuple):
    """A value of each layer (L,) and its gradient with respect to u, v or s."""

    value: Tensor
    gradient: Tensor


def _overlaps(group: _Group) -> tuple[_Term, _Term]:
    """The squared lengths of the directions inside the semantic subspace, of U and of V."""
    (u, v, _), start = group.now, group.start
    m, n = u.shape[-1], v.shape[-1]
    triplets = min(m, n) - u.shape[-2]  # of the semantic part
    weight = triplets / group.energy if triplets else torch.zeros_like(group.energy)
    return (
        _overlap(u, start.u) if m <= n else _weighted_overlap(group.b, cast(Tensor, group.far), weight),
        _overlap(v, start.v) if n <= m else _weighted_overlap(group.a, cast(Tensor, group.far), weight),
    )


def _overlap(x: Tensor, start: Tensor) -> _Term:
    """In a complete basis: what is outside of the pretrained artifact directions `start` is semantic."""
    inside = torch.baddbmm(x, x @ start.mT, start, alpha=-1)
    return _Term(_squares(inside), 2 * inside)


def _weighted_overlap(product: Tensor, far: Tensor, weight: Tensor) -> _Term:
    """weight |W_sem^T u|^2, where `product` is W_sem^T u and `far` is W_sem W_sem^T u, by rows."""
    return _Term(weight * _squares(product), 2 * weight[:, None, None] * far)


def _spectrum_drift(group: _Group) -> _Term:
    """sum_k |sort(|s_k|) - s_k(0)|^2, and its gradient with respect to s (L, R, 1)."""
    s = group.now.s
    by_subspace = (len(s), -1, group.rank)
    ordered, order = s.abs().reshape(by_subspace).sort(dim=-1, descending=True)
    drift = ordered - group.start.s.reshape(by_subspace)
    unsorted = torch.zeros_like(drift).scatter_(-1, order, drift).reshape(s.shape)
    return _Term(_squares(drift), 2 * unsorted * s.sign())


def _squares(values: Tensor) -> Tensor:
    """Squared norms (L,) of L matrices."""
    return values.square().sum(dim=(1, 2))
