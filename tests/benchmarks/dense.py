"""The reference: weights rebuilt by plain autograd in each call, and both penalties from their dense definitions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from masm.adapters import SubspaceLinear
from masm.adapters.subspace import FusedProjection


class RebuiltLinear(nn.Module):
    """A `SubspaceLinear` by its formulas: y = x (W_sem + U diag(s) V^T)^T + b, with the semantic directions kept."""

    def __init__(self, layer: SubspaceLinear) -> None:
        super().__init__()
        U, s, V = (factor.detach().clone() for factor in layer.factors())
        self.U, self.s, self.V = nn.Parameter(U), nn.Parameter(s), nn.Parameter(V)
        self.rank = layer.rank
        left, values, right = torch.linalg.svd(layer.semantic, full_matrices=False)
        kept = len(values) - len(s)
        self.register_buffer("semantic", layer.semantic)
        self.register_buffer("bias", layer.bias)
        self.register_buffer("left", left[:, :kept].clone())
        self.register_buffer("values", values[:kept].clone())
        self.register_buffer("right", right[:kept].T.clone())
        self.register_buffer("start", s.clone())
        self.register_buffer("energy", (layer.semantic + (U * s) @ V.T).square().sum())

    def weight(self) -> Tensor:
        """The whole weight (m, n)."""
        return self.semantic + self.U @ torch.diag(self.s) @ self.V.T

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., n) to (..., m)."""
        return functional.linear(x, self.weight(), self.bias)

    def orthogonality(self) -> Tensor:
        """|A^T A - I|_F^2 of both sides; on a longer side the cross terms are weighted by energy."""
        return self._side(self.left, self.U) + self._side(self.right, self.V)

    def _side(self, semantic: Tensor, directions: Tensor) -> Tensor:
        A = torch.cat([semantic, directions], dim=1)
        square = (A.T @ A - torch.eye(A.shape[1], device=A.device)).square()
        kept = semantic.shape[1]
        weights = torch.ones(kept, device=A.device)
        if len(A) > A.shape[1]:
            weights = self.values.square() / self.values.square().mean()
        cross = (square[:kept, kept:] * weights[:, None]).sum()
        return square[:kept, :kept].sum() + square[kept:, kept:].sum() + 2 * cross

    def spectral_consistency(self) -> Tensor:
        """| |W_hat|^2 - |W|^2 | / |W|^2, and the drift of each subspace's spectrum."""
        spectrum = self.s.abs().reshape(-1, self.rank).sort(dim=1, descending=True).values
        drift = (spectrum - self.start.reshape(-1, self.rank)).square().sum()
        change = (self.weight().square().sum() - self.energy).abs()
        return change / self.energy + drift / (self.energy / min(self.semantic.shape))


class JoinedLinear(nn.ModuleDict):
    """Layers of one input, with their outputs side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., n) to (..., sum of m)."""
        return torch.cat([layer(x) for layer in self.values()], dim=-1)


def with_rebuilt_weights(model: nn.Module) -> list[RebuiltLinear]:
    """Put the reference in the place of every adapted layer of `model`; returns its layers."""
    for name, module in list(model.named_modules()):
        if isinstance(module, SubspaceLinear):
            model.set_submodule(name, RebuiltLinear(module))
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedProjection):
            model.set_submodule(name, JoinedLinear(dict(module.items())))
    return [module for module in model.modules() if isinstance(module, RebuiltLinear)]


def dense_penalties(layers: list[RebuiltLinear], lambda_orth: float, lambda_spec: float) -> Tensor:
    """The weighted sum of both penalties, as means over the layers."""
    terms = [lambda_orth * layer.orthogonality() + lambda_spec * layer.spectral_consistency() for layer in layers]
    return torch.stack(terms).mean()
