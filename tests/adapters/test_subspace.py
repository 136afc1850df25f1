from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masm.adapters import SubspaceLinear
from tests.adapters.models import decomposed, gradients, perturb, random_linear

shapes = st.tuples(st.integers(4, 20), st.integers(4, 20))
groups = st.tuples(st.integers(1, 2), st.integers(1, 2))
groupings = st.sampled_from(["contiguous", "interleaved"])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def rebuilt_weight(layer: SubspaceLinear, leaves: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The dense weight W_sem + sum_k U_k diag(s_k) V_k^T, in float64."""
    return layer.semantic.double() + sum(U @ torch.diag(s) @ V.T for U, s, V in leaves)


def double_factors(layer: SubspaceLinear) -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        tuple(factor.detach().double().requires_grad_() for factor in (one.U, one.s, one.V)) for one in layer.subspaces
    ]


@settings(max_examples=30)
@given(shape=shapes, group=groups, grouping=groupings, seed=st.integers(0, 100))
def test_starts_as_the_plain_layer(shape: tuple[int, int], group: tuple[int, int], grouping: str, seed: int) -> None:
    linear = random_linear(*shape, seed=seed)
    layer = decomposed(linear, *group, grouping)
    x = torch.randn(5, 3, shape[1], generator=torch.Generator().manual_seed(seed))
    assert relative_error(layer(x), linear(x)) < 1e-5


@settings(max_examples=30)
@given(
    shape=shapes,
    group=groups,
    grouping=groupings,
    tokens=st.sampled_from([1, 7, 50]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_forward_and_gradients_are_those_of_the_rebuilt_weight(
    shape: tuple[int, int], group: tuple[int, int], grouping: str, tokens: int, dtype: torch.dtype, seed: int
) -> None:
    layer = decomposed(random_linear(*shape, seed=seed).to(dtype), *group, grouping)
    perturb(layer, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, shape[1], generator=generator, dtype=dtype, requires_grad=True)
    direction = torch.randn(tokens, shape[0], generator=generator, dtype=dtype)
    output = layer(x)
    (output * direction).sum().backward()

    leaves = double_factors(layer)
    dense_x = x.detach().double().requires_grad_()
    expected = dense_x @ rebuilt_weight(layer, leaves).T + layer.bias.double()
    (expected * direction.double()).sum().backward()

    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert relative_error(output.double(), expected) < tolerance
    assert relative_error(x.grad.double(), dense_x.grad) < tolerance
    for one, leaf in zip(layer.subspaces, leaves, strict=True):
        for found, reference in zip(gradients(one), leaf, strict=True):
            assert relative_error(found.double(), reference.grad) < 10 * tolerance


@settings(max_examples=30)
@given(shape=shapes, group=groups, grouping=groupings, seed=st.integers(0, 100))
def test_merged_layer_is_plain_and_computes_the_same(
    shape: tuple[int, int], group: tuple[int, int], grouping: str, seed: int
) -> None:
    layer = decomposed(random_linear(*shape, seed=seed), *group, grouping)
    perturb(layer, seed)
    merged = layer.merged()
    x = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(seed))
    assert type(merged) is torch.nn.Linear
    assert relative_error(merged(x), layer(x)) < 1e-5


def test_only_the_factors_are_trainable() -> None:
    layer = decomposed(random_linear(8, 6), 2, 2)
    assert {name.rsplit(".", 1)[-1] for name, _ in layer.named_parameters()} == {"factors"}
    assert sum(value.numel() for value in layer.parameters()) == 4 * (8 + 6 + 1)


def test_semantic_energy_is_that_of_the_large_singular_values() -> None:
    linear = random_linear(8, 6)
    values = torch.linalg.svdvals(linear.weight.detach().double())
    torch.testing.assert_close(decomposed(linear, 2, 2).semantic_energy.double(), values[:2].square().sum())
