"""The autograd function alone: gradients by finite differences, operations counted, what it keeps in memory."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from masm.adapters import SubspaceLinear
from masm.adapters.functional import Part, subspace_linear
from tests.adapters.models import decomposed, perturb, random_linear
from tests.benchmarks.memory import LiveBytes

M, N, R = 12, 10, 4
FEW, MANY = 2, 40  # tokens: low-rank path and rebuilt weight, in both directions


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("adapted", [(True,), (True, False, True)])
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_are_those_of_finite_differences(tokens: int, adapted: tuple[bool, ...], biased: bool) -> None:
    x = draw(2, tokens // 2, N).requires_grad_()
    factors = [draw(R, M + N + 1, seed=index + 1).requires_grad_() for index, yes in enumerate(adapted) if yes]

    def outputs(x: Tensor, *factors: Tensor) -> Tensor:
        given = iter(factors)
        parts = [
            Part(draw(M, N, seed=9 + index), draw(M, seed=20) if biased else None, next(given) if yes else None)
            for index, yes in enumerate(adapted)
        ]
        return subspace_linear(functional.gelu(x), parts)

    assert torch.autograd.gradcheck(outputs, (x, *factors))


def layer_of(subspaces: int = 2, rank: int = R // 2) -> SubspaceLinear:
    layer = decomposed(random_linear(M, N), subspaces, rank)
    perturb(layer)
    return layer


@pytest.mark.parametrize("tokens", [1, FEW, 5, 6, 11, 13, MANY, 400])
def test_each_direction_takes_the_form_with_fewer_operations(tokens: int) -> None:
    layer = layer_of()
    x = torch.randn(tokens, N, requires_grad=True)
    in_place = {torch.ops.aten.addmm_: lambda y, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as forward:
        y = layer(x)
    with FlopCounterMode(display=False, custom_mapping=in_place) as backward:
        y.sum().backward()
    frozen, weight = 2 * tokens * M * N, 2 * M * N * R
    assert forward.get_total_flops() == frozen + min(weight, 2 * tokens * (M + N) * R)
    assert backward.get_total_flops() == frozen + 4 * tokens * (M + N) * R + min(weight, 2 * tokens * N * R)


@pytest.mark.parametrize("before", [nn.GELU(), nn.GELU("tanh"), nn.LayerNorm(N), nn.LayerNorm(N, bias=False)])
def test_its_input_is_not_kept_where_it_can_be_computed_again(before: nn.Module) -> None:
    """As much is kept after the forward pass as a frozen plain layer keeps, which needs no input."""
    before.requires_grad_(False)
    kept = {}
    for name, layer in (("plain", random_linear(M, N).requires_grad_(False)), ("adapted", layer_of())):
        x = torch.randn(64, N, requires_grad=True)
        with LiveBytes() as live:
            y = layer(before(x))
        kept[name] = live.now - y.nbytes
    factors = sum(value.nbytes for value in layer.parameters())
    assert kept["adapted"] - kept["plain"] <= factors < 64 * N * 4


@pytest.mark.parametrize("before", [nn.GELU(), nn.GELU("tanh"), nn.LayerNorm(N), nn.LayerNorm(N, bias=False)])
def test_a_repeated_input_gives_the_same_gradients_as_a_kept_one(before: nn.Module) -> None:
    layer = layer_of()
    for parameter in before.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    gradients = []
    for kept in (False, True):
        x = torch.randn(MANY, N, generator=torch.Generator().manual_seed(0)).requires_grad_()
        inputs = before(3 * x + 2)
        y = layer(inputs.clone() if kept else inputs)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]))
    for repeated, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(repeated, expected, rtol=1e-4, atol=1e-4)


def test_gated_input_is_computed_again() -> None:
    layer = layer_of()
    gate, value = (draw(MANY, N, seed=seed).float().requires_grad_() for seed in (1, 2))
    found = torch.autograd.grad(layer(functional.silu(gate) * value).square().sum(), [gate, *layer.parameters()])
    product = (functional.silu(gate) * value).clone()
    expected = torch.autograd.grad(layer(product).square().sum(), [gate, *layer.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_checkpointing_gives_the_same_gradients() -> None:
    layer = layer_of()
    x = torch.randn(MANY, N, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return layer(functional.gelu(x))

    found = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).square().sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(block(x).square().sum(), [x, *layer.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tokens", [FEW, 400])
def test_bfloat16_autocast_stays_within_its_rounding(tokens: int) -> None:
    layer, before = layer_of(), nn.LayerNorm(N).requires_grad_(False)
    x = torch.randn(tokens, N, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inputs = [x, *layer.parameters()]
    exact = torch.autograd.grad(layer(before(x)).square().sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(before(x))
    assert y.dtype == torch.bfloat16
    rounded = torch.autograd.grad(y.float().square().sum(), inputs)
    for one, reference in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - reference).norm() < 0.03 * reference.norm()


class Block(nn.Module):
    """A layer behind a normalisation and one behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(N).requires_grad_(False)
        self.first = layer_of()
        self.second = decomposed(random_linear(N, M), 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.gelu(self.first(self.norm(x))))


BACKENDS = [
    pytest.param("aot_eager"),
    pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a compiler")),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    block = Block()
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for tokens in (FEW, MANY):
        x = torch.randn(2, tokens, N, requires_grad=True)
        inputs = [x, *(parameter for parameter in block.parameters() if parameter.requires_grad)]
        expected, found = block(x), compiled(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        gradients = zip(
            torch.autograd.grad(found.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs),
            strict=True,
        )
        for one, other in gradients:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
