"""The thin penalties against their dense definitions, built from NumPy's own decomposition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from masm.adapters import SubspaceLinear, penalty
from tests.adapters.models import decomposed, gradients, perturb, random_linear

SHAPES = [(12, 12), (20, 12), (12, 20)]
Factors = list[tuple[Tensor, Tensor, Tensor]]


def orthogonality(layers: dict[str, SubspaceLinear]) -> Tensor:
    return penalty(layers, 1.0, 0.0)


def spectral_consistency(layers: dict[str, SubspaceLinear]) -> Tensor:
    return penalty(layers, 0.0, 1.0)


def double_factors(layer: SubspaceLinear) -> Factors:
    return [
        tuple(factor.detach().double().requires_grad_() for factor in (one.U, one.s, one.V)) for one in layer.subspaces
    ]


def side_penalty(directions: Tensor, semantic: Tensor, values: Tensor) -> Tensor:
    """|A^T A - I|_F^2 with A = [semantic | directions]; on a long side the cross terms weighted by energy."""
    A = torch.cat([semantic, directions], dim=1)
    square = (A.T @ A - torch.eye(A.shape[1], dtype=A.dtype)).square()
    if len(A) == min(len(A), A.shape[1]):
        return square.sum()
    count = semantic.shape[1]
    cross = square[:count, count:] * (values.square() / values.square().mean())[:, None]
    return square[:count, :count].sum() + square[count:, count:].sum() + 2 * cross.sum()


def dense_orthogonality(weight: np.ndarray, factors: Factors) -> Tensor:
    U, S, Vh = (torch.from_numpy(part) for part in np.linalg.svd(weight, full_matrices=False))
    kept = len(S) - sum(len(s) for _, s, _ in factors)
    left, right = torch.cat([U for U, _, _ in factors], 1), torch.cat([V for _, _, V in factors], 1)
    return side_penalty(left, U[:, :kept], S[:kept]) + side_penalty(right, Vh[:kept].T, S[:kept])


def dense_spectral_consistency(weight: np.ndarray, factors: Factors) -> Tensor:
    """For the interleaved grouping."""
    U, S, Vh = (torch.from_numpy(part) for part in np.linalg.svd(weight, full_matrices=False))
    total = sum(len(s) for _, s, _ in factors)
    kept = len(S) - total
    semantic = U[:, :kept] @ torch.diag(S[:kept]) @ Vh[:kept]
    adapted = semantic + sum(U @ torch.diag(s) @ V.T for U, s, V in factors)
    energy = float((weight**2).sum())
    penalty = (adapted.square().sum() - energy).abs() / energy
    for k, (_, s, _) in enumerate(factors):
        start = S[kept:][k :: len(factors)]
        penalty = penalty + (s.abs().sort(descending=True).values - start).square().sum() / (energy / len(S))
    return penalty


CASES = [(orthogonality, dense_orthogonality), (spectral_consistency, dense_spectral_consistency)]


@pytest.mark.parametrize(("thin", "dense"), CASES)
@settings(max_examples=25)
@given(
    shape=st.one_of(st.sampled_from(SHAPES), st.tuples(st.integers(6, 16), st.integers(6, 16))),
    group=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_value_and_gradients_are_those_of_the_dense_definition(
    thin: Callable[..., Tensor],
    dense: Callable[..., Tensor],
    shape: tuple[int, int],
    group: tuple[int, int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    linear = random_linear(*shape, seed).to(dtype)
    layer = decomposed(linear, *group)
    perturb(layer, seed)
    value = thin({"layer": layer})
    value.backward()

    factors = double_factors(layer)
    expected = dense(linear.weight.detach().double().numpy(), factors)
    expected.backward()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9  # the spectrum's change is a difference of near numbers
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    for one, reference in zip(layer.subspaces, factors, strict=True):
        for found, leaf in zip(gradients(one), reference, strict=True):
            wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert (found.double() - wanted).norm() <= tolerance * wanted.norm()


def test_weighted_sum_over_layers_of_several_shapes() -> None:
    layers = {
        str(index): decomposed(random_linear(*shape, index), 2, 2) for index, shape in enumerate([*SHAPES, (12, 12)])
    }
    perturb(nn.ModuleList(layers.values()))
    factors = [piece for layer in layers.values() for piece in layer.pieces()]
    single = [torch.autograd.grad(term(layers), factors) for term in (orthogonality, spectral_consistency)]
    both = torch.autograd.grad(penalty(layers, 0.3, 2.0), factors)
    for found, first, second in zip(both, *single, strict=True):
        torch.testing.assert_close(found, 0.3 * first + 2.0 * second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", [(2, 3), (3, 4)])  # 12 is the full rank
def test_both_are_zero_at_the_start(shape: tuple[int, int], group: tuple[int, int]) -> None:
    layers = {"layer": decomposed(random_linear(*shape), *group)}
    assert 0 <= orthogonality(layers).item() < 1e-9
    assert 0 <= spectral_consistency(layers).item() < 1e-5


def test_a_direction_inside_the_semantic_subspace_costs_what_the_formula_says() -> None:
    """A unit artifact direction put onto a semantic one costs 2 on its side: 2 |U_sem^T u|^2."""
    linear = random_linear(12, 12)
    layer = decomposed(linear, 1, 1)
    U = np.linalg.svd(linear.weight.detach().double().numpy())[0]
    with torch.no_grad():
        layer.subspaces[0].U.copy_(torch.from_numpy(U[:, :1]))
    assert orthogonality({"layer": layer}).item() == pytest.approx(2, rel=1e-4)


def test_full_rank_of_a_rectangular_layer_has_no_semantic_term() -> None:
    linear = random_linear(20, 12)
    linear.weight.data = torch.eye(20, 12)  # decomposes without rounding: the semantic part is exactly zero
    layer = decomposed(linear, 3, 4)
    with torch.no_grad():
        rotation = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q
        for one in layer.subspaces:
            one.U.copy_(rotation @ one.U)  # still orthonormal, in other directions
    assert orthogonality({"layer": layer}).item() < 1e-9


@pytest.mark.parametrize("penalty", [orthogonality, spectral_consistency])
def test_mean_over_layers(penalty: Callable[..., Tensor]) -> None:
    layers = {str(seed): decomposed(random_linear(12, 8, seed), 2, 2) for seed in range(3)}
    for seed, layer in enumerate(layers.values()):
        perturb(layer, seed)
    single = [penalty({name: layer}).item() for name, layer in layers.items()]
    assert penalty(layers).item() == pytest.approx(np.mean(single), rel=1e-5)
    assert penalty({}).item() == 0


@pytest.mark.parametrize("penalty", [orthogonality, spectral_consistency])
def test_stays_in_float32_under_autocast(penalty: Callable[..., Tensor]) -> None:
    layers = {"layer": decomposed(random_linear(12, 12), 2, 2)}
    perturb(layers["layer"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = penalty(layers)
    assert torch.equal(inside, penalty(layers))
