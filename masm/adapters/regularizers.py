"""The two penalties on the artifact subspaces, in thin form: nothing of size m x m, n x n is ever formed.

Stated in the abstract of MASM (arXiv 2601.01041): orthogonality makes the artifact subspaces
complementary, spectral consistency keeps the overall spectrum of the pretrained weights. The formulas
are ours. Both are means over the adapted layers, in float32 outside of autocast, and zero at the start.

Orthogonality, per layer: |A^T A - I|_F^2 + |B^T B - I|_F^2 with A = [U_sem | U_1 .. U_K] and
B = [V_sem | V_1 .. V_K]. On the longer side of a rectangular weight |U_sem^T u|^2 becomes
|W_sem^T u|^2 / mean(S_sem^2): the same zeros, weighted by energy, and without U_sem.

Spectral consistency, per layer: | |W_hat|_F^2 - |W|_F^2 | / |W|_F^2
+ sum_k |sort(|s_k|) - s_k(0)|^2 / (|W|_F^2 / min(m, n)), sorted descending.

Their gradients are written out, not left to autograd: W_sem v, W_sem^T u and, for a rectangular weight,
W_sem W_sem^T u serve both the values and the gradients of both, in two passes over W_sem. All else is done
for layers of one shape at once.
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


class Penalties(NamedTuple):
    """The two penalties, scalars; 0 without layers."""

    orthogonality: Tensor
    spectral_consistency: Tensor


def penalties(layers: Mapping[str, SubspaceLinear]) -> Penalties:
    """How far the subspaces are from orthonormal and from the pretrained spectrum; differentiable once."""
    alike = defaultdict(list)
    for layer in layers.values():
        alike[layer.semantic.shape, layer.start.shape, layer.rank].append(layer)
    total = torch.zeros(2)
    for group in alike.values():
        total = total.to(group[0].semantic.device) + _of_group(group) / len(layers)
    return Penalties(total[0], total[1])


class _Term(NamedTuple):
    """A penalty of each layer (L,), and its gradient with respect to the factors (L, R, m + n + 1)."""

    value: Tensor
    gradient: Tensor


class _Group(NamedTuple):
    """L layers of one shape; u, v and s are the factors, a = (W_sem v)^T and b = (W_sem^T u)^T by rows.

    `far` is b W_sem^T where U is the longer side, a W_sem where V is, and None for a square weight.
    """

    now: Blocks
    start: Blocks
    a: Tensor
    b: Tensor
    far: Tensor | None
    semantic_energy: Tensor
    rank: int


def _of_group(layers: list[SubspaceLinear]) -> Tensor:
    """The sums (2,) of both penalties over layers of one shape."""
    factors = torch.cat([piece for layer in layers for piece in layer.pieces()])
    return _GroupPenalties.apply(factors, layers)


class _GroupPenalties(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factors: Tensor, layers: list[SubspaceLinear]) -> Tensor:
        with torch.autocast(factors.device.type, enabled=False):
            group = _prepare(factors.unflatten(0, (len(layers), -1)), layers)
            terms = _orthogonality(group), _spectral_consistency(group)
        ctx.save_for_backward(*(term.gradient.flatten(0, 1) for term in terms))
        return torch.stack([term.value.sum() for term in terms])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        orthogonality, spectral_consistency = ctx.saved_tensors
        return weights[0] * orthogonality + weights[1] * spectral_consistency, None


def _prepare(factors: Tensor, layers: list[SubspaceLinear]) -> _Group:
    out_features = len(layers[0].semantic)
    now = Blocks.of(factors, out_features)
    products = [_through(layer.semantic, u, v) for layer, u, v in zip(layers, now.u, now.v, strict=True)]
    a, b, far = zip(*products, strict=True)
    return _Group(
        now,
        Blocks.of(torch.stack([layer.start for layer in layers]), out_features),
        torch.stack(a),
        torch.stack(b),
        torch.stack(far) if out_features != now.v.shape[-1] else None,
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


def _orthogonality(group: _Group) -> _Term:
    (u, v, _), start = group.now, group.start
    m, n, rank = u.shape[-1], v.shape[-1], u.shape[-2]
    triplets = min(m, n) - rank  # of the semantic part
    weight = triplets / group.semantic_energy if triplets else torch.zeros_like(group.semantic_energy)
    left = _overlap(u, start.u) if m <= n else _weighted_overlap(group.b, cast(Tensor, group.far), weight)
    right = _overlap(v, start.v) if n <= m else _weighted_overlap(group.a, cast(Tensor, group.far), weight)
    own_left, own_right = _deviation(u), _deviation(v)
    of_u, of_v = own_left.gradient + 2 * left.gradient, own_right.gradient + 2 * right.gradient
    return _Term(
        own_left.value + own_right.value + 2 * (left.value + right.value),
        torch.cat([of_u, of_v, torch.zeros_like(group.now.s)], dim=-1),
    )


def _deviation(x: Tensor) -> _Term:
    """|X^T X - I|_F^2 for the rows of x (L, R, d)."""
    difference = x @ x.mT - torch.eye(x.shape[-2], device=x.device, dtype=x.dtype)
    return _Term(difference.square().sum(dim=(1, 2)), 4 * difference @ x)


def _overlap(x: Tensor, start: Tensor) -> _Term:
    """Squared length of the rows of x inside the semantic subspace of a complete basis.

    What is outside of the pretrained artifact directions `start` is semantic.
    """
    inside = torch.baddbmm(x, x @ start.mT, start, alpha=-1)
    return _Term(inside.square().sum(dim=(1, 2)), 2 * inside)


def _weighted_overlap(product: Tensor, far: Tensor, weight: Tensor) -> _Term:
    """weight |W_sem^T u|^2, where `product` is W_sem^T u and `far` is W_sem W_sem^T u, by rows."""
    return _Term(weight * product.square().sum(dim=(1, 2)), 2 * weight[:, None, None] * far)


def _spectral_consistency(group: _Group) -> _Term:
    energy, drift = _energy_change(group), _spectrum_drift(group)
    energy.gradient[..., -1:] += drift.gradient
    return _Term(energy.value + drift.value, energy.gradient)


def _energy_change(group: _Group) -> _Term:
    """| |W_hat|^2 - |W|^2 | / |W|^2, taken as a difference to the start: less |W|^2 it would cancel."""
    u, v, s = group.now
    left, right, pairs = u @ u.mT, v @ v.mT, s @ s.mT
    lengths = (u * group.a).sum(dim=-1, keepdim=True)  # u_i^T W_sem v_i
    start_energy = group.start.s.square().sum(dim=(1, 2))
    own = (pairs * left * right).sum(dim=(1, 2))
    change = 2 * (s * lengths).sum(dim=(1, 2)) + (own - start_energy)
    energy = group.semantic_energy + start_energy
    gradient = torch.cat(
        [
            torch.baddbmm(s * group.a, pairs * right, u),
            torch.baddbmm(s * group.b, pairs * left, v),
            lengths + (left * right) @ s,
        ],
        dim=-1,
    )
    return _Term(change.abs() / energy, gradient.mul_((2 * change.sign() / energy)[:, None, None]))


def _spectrum_drift(group: _Group) -> _Term:
    """sum_k |sort(|s_k|) - s_k(0)|^2 / (|W|^2 / min(m, n)); the gradient is that of s (L, R, 1)."""
    u, v, s = group.now
    by_subspace = (len(s), -1, group.rank)
    ordered, order = s.abs().reshape(by_subspace).sort(dim=-1, descending=True)
    drift = ordered - group.start.s.reshape(by_subspace)
    energy = group.semantic_energy + group.start.s.square().sum(dim=(1, 2))
    weight = min(u.shape[-1], v.shape[-1]) / energy
    gradient = torch.zeros_like(drift).scatter_(-1, order, drift).reshape(s.shape) * s.sign()
    return _Term(weight * drift.square().sum(dim=(1, 2)), 2 * weight[:, None, None] * gradient)
