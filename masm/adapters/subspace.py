"""The linear layer with K artifact subspaces, and the fused projection made of several of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from masm.adapters.decompose import Split
from masm.adapters.functional import Blocks, Part, subspace_linear


class ArtifactSubspace(nn.Module):
    """One trainable artifact subspace W_k = U diag(s) V^T, as its r triplets by rows.

    `factors` (r, m + n + 1) holds one triplet (u, v, s) in each row: one parameter is one thing to mask, to clip
    and to step. U (m, r), s (r,) and V (n, r) are views of it.
    """

    def __init__(self, out_features: int, in_features: int, rank: int, device: torch.device) -> None:
        super().__init__()
        self.out_features = out_features
        self.factors = nn.Parameter(torch.zeros(rank, out_features + in_features + 1, device=device))

    @property
    def U(self) -> Tensor:  # noqa: N802
        """The left directions (m, r)."""
        return Blocks.of(self.factors, self.out_features).u.T

    @property
    def s(self) -> Tensor:
        """The values (r,)."""
        return self.factors[:, -1]

    @property
    def V(self) -> Tensor:  # noqa: N802
        """The right directions (n, r)."""
        return Blocks.of(self.factors, self.out_features).v.T


class SubspaceLinear(nn.Module):
    """y = x W_sem^T + ((x V) * s) U^T + b, with V = [V_1 .. V_K], s and U alike.

    W_sem (m, n) and the bias are frozen buffers; the K subspaces are trainable. `subspace_linear` takes the
    cheaper form of this in each call. Until `initialise` is called the factors are zero and W_sem is the whole
    weight of `linear`.

    The buffer `start` (K r, m + n + 1) keeps the pretrained factors, one below the other in the order of the
    subspaces: the penalties measure against them. `semantic_energy` is |W_sem|_F^2. Both are saved with the
    model, so that a loaded one trains on as if it had never been away.
    """

    semantic: Tensor
    bias: Tensor | None
    start: Tensor
    semantic_energy: Tensor

    def __init__(self, linear: nn.Linear, subspaces: int, rank: int) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        (out_features, in_features), device = weight.shape, weight.device
        self.rank = rank
        self.register_buffer("semantic", weight.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.subspaces = nn.ModuleList(
            ArtifactSubspace(out_features, in_features, rank, device) for _ in range(subspaces)
        )
        self.register_buffer("start", torch.zeros(subspaces * rank, out_features + in_features + 1, device=device))
        self.register_buffer("semantic_energy", torch.zeros((), device=device))

    @torch.no_grad()
    def initialise(self, split: Split) -> None:
        """Start from a split of the pretrained weight: the layer then computes what the plain one did."""
        self.semantic.copy_(split.semantic)
        self.semantic_energy.copy_(split.semantic.square().sum())
        self.start.copy_(torch.cat([split.U.T, split.V.T, split.s[:, None]], dim=1))
        for factors, start in zip(self.pieces(), self.start.split(self.rank), strict=True):
            factors.copy_(start)

    def pieces(self) -> list[Tensor]:
        """The factors (r, m + n + 1) of each subspace."""
        return [one.factors for one in cast(Iterable[ArtifactSubspace], self.subspaces)]

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, K r), s (K r,) and V (n, K r) of all subspaces side by side, with gradient."""
        u, v, s = Blocks.of(torch.cat(self.pieces()), len(self.semantic))
        return u.T, s[:, 0], v.T

    def part(self) -> Part:
        """What `subspace_linear` takes."""
        return Part(self.semantic, self.bias, torch.cat(self.pieces()))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., n) to (..., m)."""
        return subspace_linear(x, [self.part()])

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain frozen linear layer that computes the same; summed up in float64."""
        U, s, V = (factor.double() for factor in self.factors())
        weight = (self.semantic.double() + (U * s) @ V.T).to(self.semantic.dtype)
        return plain_linear(weight, self.bias)


class FusedProjection(nn.ModuleDict):
    """Linear layers of one input whose outputs are joined, such as q, k and v of timm's `attn.qkv`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., n) to the parts' outputs side by side (..., sum of m)."""
        parts = cast(Iterable[SubspaceLinear | nn.Linear], self.values())
        return subspace_linear(
            x, [one.part() if isinstance(one, SubspaceLinear) else Part(one.weight, one.bias, None) for one in parts]
        )

    def merged(self) -> nn.Linear:
        """The one plain frozen linear layer that computes the same, of parts that are plain themselves."""
        parts = [cast(nn.Linear, part) for part in self.values()]
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        return plain_linear(torch.cat([part.weight for part in parts]), bias)


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A frozen `nn.Linear` that holds copies of `weight` (m, n) and `bias` (m,)."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear
