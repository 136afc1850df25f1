"""y = x (W_sem + sum_k U_k diag(s_k) V_k^T)^T + b as one autograd function, in the cheaper of two forms.

The low-rank path adds ((x V) * s) U^T to x W_sem^T; the rebuilt weight adds (U * s) V^T to W_sem first. Plain
autograd would make the second compute the gradient of the whole weight; here both have the same thin backward,
and each direction takes the form with fewer operations. All of this is ours.

Factors are held by rows, one triplet (u, v, s) each: products of a few rows are several times faster than those
of a few columns, and subspaces are joined by joining rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Origin = tuple[Callable[..., Tensor], tuple[Tensor | None, ...]]


class Blocks(NamedTuple):
    """Factors by what they are, with one triplet in a row: u (..., R, m), v (..., R, n), s (..., R, 1)."""

    u: Tensor
    v: Tensor
    s: Tensor

    @classmethod
    def of(cls, factors: Tensor, out_features: int) -> Blocks:
        """The blocks of `factors` (..., R, m + n + 1), as views."""
        return cls(factors[..., :out_features], factors[..., out_features:-1], factors[..., -1:])


class Part(NamedTuple):
    """One matrix of a projection: W_sem (m, n), bias (m,) or None, triplets (R, m + n + 1) or None where plain."""

    semantic: Tensor
    bias: Tensor | None
    factors: Tensor | None


def subspace_linear(x: Tensor, parts: Sequence[Part]) -> Tensor:
    """Map x (..., n) to the outputs of `parts` side by side (..., sum of m).

    Gradients reach x and the factors, once. Under autocast it computes in autocast's type; a rebuilt weight is
    summed up in its own type and rounded once.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    compute, sources = _origin(x)
    tensors = [tensor for part in parts for tensor in part]
    rows = x.reshape(-1, x.shape[-1])
    y = cast(Tensor, _SubspaceLinear.apply(rows, dtype, compute, len(sources), *sources, *tensors))
    return y.reshape(*x.shape[:-1], -1)


class _SubspaceLinear(torch.autograd.Function):
    """Keeps the origin of its input for backward, and no product: x V is cheap to repeat."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, compute: Callable[..., Tensor], sources: int, *tensors: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.dtype, ctx.input_dtype, ctx.compute, ctx.sources = dtype, x.dtype, compute, sources
        parts = _parts(tensors[sources:])
        with torch.autocast(x.device.type, enabled=False):
            if _rebuild_forward(parts, len(x)):
                return _rebuilt_path(x.to(dtype), parts)
            return _low_rank_path(x.to(dtype), parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        parts = _parts(tensors[ctx.sources :])
        with torch.autocast(gradient.device.type, enabled=False):
            x = ctx.compute(*tensors[: ctx.sources])
            dy = gradient.to(ctx.dtype)
            dz, gradients = _thin_backward(x.reshape(len(dy), -1).to(ctx.dtype), dy, parts)
            dx = _input_gradient(dy, dz, parts).to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        waiting = iter(gradients)
        of_parts = [None if part.factors is None else next(waiting).to(part.factors.dtype) for part in parts]
        of_tensors = [one for gradient in of_parts for one in (None, None, gradient)]
        return dx, None, None, None, *[None] * ctx.sources, *of_tensors


def _rebuild_forward(parts: Sequence[Part], tokens: int) -> bool:
    """Whether m n R operations for the weight are fewer than tokens (m + n) R for the low-rank path."""
    ranks = [(part, len(part.factors)) for part in parts if part.factors is not None]
    weight = sum(rank * part.semantic.numel() for part, rank in ranks)
    return weight < tokens * sum(rank * sum(part.semantic.shape) for part, rank in ranks)


def _rebuild_backward(parts: Sequence[Part], tokens: int) -> bool:
    """Whether m n R operations for the weight are fewer than tokens n R for dx: dz is needed in any case."""
    ranks = [(part, len(part.factors)) for part in parts if part.factors is not None]
    return sum(rank * len(part.semantic) for part, rank in ranks) < tokens * sum(rank for _, rank in ranks)


def _rebuilt_path(x: Tensor, parts: Sequence[Part]) -> Tensor:
    bias = None if parts[0].bias is None else _joined([cast(Tensor, part.bias) for part in parts]).to(x.dtype)
    return functional.linear(x, _rebuilt(parts, x.dtype), bias)


def _rebuilt(parts: Sequence[Part], dtype: torch.dtype) -> Tensor:
    """The whole weight of all parts (sum of m, n)."""
    weights = []
    for semantic, _, factors in parts:
        if factors is not None:
            u, v, s = Blocks.of(factors, len(semantic))
            semantic = torch.addmm(semantic, (u * s).T, v)
        weights.append(semantic)
    return _joined(weights).to(dtype)


def _low_rank_path(x: Tensor, parts: Sequence[Part]) -> Tensor:
    # In place saves a copy of y; a compiler does that itself, and torch 2.11's loses the gradient of what is in place.
    add = Tensor.addmm if torch.compiler.is_compiling() else Tensor.addmm_
    outputs = []
    for semantic, bias, factors in parts:
        y = functional.linear(x, semantic.to(x.dtype), None if bias is None else bias.to(x.dtype))
        if factors is not None:
            u, v, s = Blocks.of(factors.to(x.dtype), len(semantic))
            y = add(y, (x @ v.T) * s.T, u)
        outputs.append(y)
    return _joined(outputs, dim=-1)


def _thin_backward(x: Tensor, dy: Tensor, parts: Sequence[Part]) -> tuple[Tensor, list[Tensor]]:
    """d(x V)^T (sum of R, tokens), and the gradient of the factors of each part that has some."""
    outputs = dy.split([len(part.semantic) for part in parts], dim=-1)
    adapted = [
        (Blocks.of(part.factors.to(x.dtype), len(part.semantic)), output)
        for part, output in zip(parts, outputs, strict=True)
        if part.factors is not None
    ]
    ranks = [len(one.s) for one, _ in adapted]
    v, s = _joined([one.v for one, _ in adapted]), _joined([one.s for one, _ in adapted])
    z = v @ x.T
    dzs = _joined([one.u @ output.T for one, output in adapted])
    dz = dzs * s
    du = [scaled @ output for scaled, (_, output) in zip((z * s).split(ranks), adapted, strict=True)]
    dv, ds = (dz @ x).split(ranks), (z * dzs).sum(dim=1, keepdim=True).split(ranks)
    gradients = [torch.cat(blocks, dim=-1) for blocks in zip(du, dv, ds, strict=True)]
    return dz, gradients


def _input_gradient(dy: Tensor, dz: Tensor, parts: Sequence[Part]) -> Tensor:
    if _rebuild_backward(parts, len(dy)):
        return dy @ _rebuilt(parts, dy.dtype)
    v = [Blocks.of(part.factors, len(part.semantic)).v for part in parts if part.factors is not None]
    dx = dy @ _joined([part.semantic for part in parts]).to(dy.dtype)
    return dx.addmm_(dz.T, _joined(v).to(dy.dtype))


def _parts(tensors: Sequence[Tensor]) -> list[Part]:
    return [Part(*tensors[start : start + 3]) for start in range(0, len(tensors), 3)]


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


def _origin(x: Tensor) -> Origin:
    """The function that gives x, and what it needs: all that has to be kept of x until backward.

    Where x comes out of a normalisation or an activation, autograd keeps the input of that one anyway: x is then
    computed again, and not kept. A compiler decides on this itself; and where hooks watch over saved tensors
    (as in checkpointing) none may be read before its time.
    """
    if torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return _itself, (x.detach(),)
    node: Any = x.grad_fn
    match node and node.name():
        case "GeluBackward0":
            return partial(functional.gelu, approximate=node._saved_approximate), _saved(node, "self")
        case "NativeLayerNormBackward0":
            return _layer_norm, _saved(node, "input", "result1", "result2", "weight", "bias")
        case "MulBackward0" if node._saved_self is not None and node._saved_other is not None:
            return torch.mul, _saved(node, "self", "other")
    return _itself, (x.detach(),)


def _saved(node: Any, *names: str) -> tuple[Tensor | None, ...]:
    """What a node of autograd's graph keeps, by its names there."""
    values = (getattr(node, f"_saved_{name}") for name in names)
    return tuple(None if value is None else value.detach() for value in values)


def _itself(x: Tensor) -> Tensor:
    return x


def _layer_norm(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Layer normalisation with the statistics that its own forward found."""
    y = (x - mean) * inverse
    y = y if weight is None else y.mul_(weight)
    return y if bias is None else y.add_(bias)
