"""The linear layer with K artifact subspaces, and the fused projection made of several of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from masm.adapters.decompose import Split


class ArtifactSubspace(nn.Module):
    """One trainable artifact subspace W_k = U diag(s) V^T: U (m, r), s (r), V (n, r)."""

    def __init__(self, out_features: int, in_features: int, rank: int, device: torch.device) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.zeros(out_features, rank, device=device))
        self.s = nn.Parameter(torch.zeros(rank, device=device))
        self.V = nn.Parameter(torch.zeros(in_features, rank, device=device))


class SubspaceLinear(nn.Module):
    """y = x W_sem^T + ((x V) * s) U^T + b, with V = [V_1 .. V_K], s and U alike.

    W_sem (m, n) and the bias are frozen buffers; the K subspaces are trainable. The m x n weight is never
    rebuilt in training: autograd would then compute the gradient of all of it. Until `initialise` is
    called the factors are zero and W_sem is the whole weight of `linear`.

    The buffers `start_*` keep the pretrained factors, side by side in the order of the subspaces:
    the penalties measure against them. `semantic_energy` is |W_sem|_F^2. All are saved with the model,
    so that a loaded one trains on as if it had never been away.
    """

    semantic: Tensor
    bias: Tensor | None
    start_u: Tensor
    start_s: Tensor
    start_v: Tensor
    semantic_energy: Tensor

    def __init__(self, linear: nn.Linear, subspaces: int, rank: int) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        (out_features, in_features), total, device = weight.shape, subspaces * rank, weight.device
        self.rank = rank
        self.register_buffer("semantic", weight.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.subspaces = nn.ModuleList(
            ArtifactSubspace(out_features, in_features, rank, device) for _ in range(subspaces)
        )
        self.register_buffer("start_u", torch.zeros(out_features, total, device=device))
        self.register_buffer("start_s", torch.zeros(total, device=device))
        self.register_buffer("start_v", torch.zeros(in_features, total, device=device))
        self.register_buffer("semantic_energy", torch.zeros((), device=device))

    @torch.no_grad()
    def initialise(self, split: Split) -> None:
        """Start from a split of the pretrained weight: the layer then computes what the plain one did."""
        self.semantic.copy_(split.semantic)
        self.semantic_energy.copy_(split.semantic.square().sum())
        starts = (self.start_u, self.start_s, self.start_v)
        for start, pieces, factor in zip(starts, self._pieces(), (split.U, split.s, split.V), strict=True):
            start.copy_(factor)
            for piece, value in zip(pieces, factor.split(self.rank, dim=-1), strict=True):
                piece.copy_(value)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (m, K r), s (K r) and V (n, K r) of all subspaces side by side, with gradient."""
        U, s, V = (torch.cat(pieces, dim=-1) for pieces in self._pieces())
        return U, s, V

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., n) to (..., m)."""
        U, s, V = self.factors()
        artifacts = functional.linear(functional.linear(x, V.T) * s, U)
        return functional.linear(x, self.semantic, self.bias) + artifacts

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain frozen linear layer that computes the same; summed up in float64."""
        U, s, V = (factor.double() for factor in self.factors())
        weight = (self.semantic.double() + (U * s) @ V.T).to(self.semantic.dtype)
        return plain_linear(weight, self.bias)

    def _pieces(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        subspaces = list(cast(Iterable[ArtifactSubspace], self.subspaces))
        return [one.U for one in subspaces], [one.s for one in subspaces], [one.V for one in subspaces]


class FusedProjection(nn.ModuleDict):
    """Linear layers of one input whose outputs are joined, such as q, k and v of timm's `attn.qkv`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., n) to the parts' outputs side by side (..., sum of m)."""
        return torch.cat([part(x) for part in self.values()], dim=-1)

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
