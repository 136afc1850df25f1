"""The losses against NumPy float64: triplets by three loops, gradients by finite differences."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from masm.losses import (
    LossSettings,
    attribution_loss,
    classification_loss,
    distances,
    metric_loss,
)
from tests.benchmarks.losses import BATCH, LOSSES, loss_step
from tests.benchmarks.memory import peak_of

KINDS = ("batch_all", "batch_hard", "semi_hard", "soft_margin", "real_anchored")
EVERY_LOSS = [
    *(LossSettings(triplet=kind, triplet_weight=1.0, margin=0.2) for kind in KINDS),
    LossSettings(alignment_weight=1.0),
    LossSettings(uniformity_weight=1.0),
]
SUM = LossSettings(triplet="batch_hard", triplet_weight=0.7, margin=0.3, alignment_weight=0.1, uniformity_weight=0.5)


def by_loops(kind: str, apart: np.ndarray, groups: np.ndarray, margin: float) -> float:
    """A triplet loss from its definition: every triplet is looked at."""
    count, every, hardest, semi_hard = len(groups), [], [], []
    for a in range(count):
        positives = [apart[a, p] for p in range(count) if p != a and groups[p] == groups[a]]
        negatives = [apart[a, n] for n in range(count) if groups[n] != groups[a]]
        if kind == "real_anchored" and groups[a] != 0:
            continue
        if positives and negatives:
            hardest.append(max(positives) - min(negatives))
        for near in positives:
            every += [near - far + margin for far in negatives if near - far + margin > 0]
            beyond = [far for far in negatives if far > near]
            if beyond and near - min(beyond) + margin > 0:
                semi_hard.append(near - min(beyond) + margin)
    terms = {
        "batch_all": every,
        "real_anchored": every,
        "semi_hard": semi_hard,
        "batch_hard": [max(0, gap + margin) for gap in hardest],
        "soft_margin": [math.log1p(math.exp(gap)) for gap in hardest],
    }[kind]
    return sum(terms) / len(terms) if terms else 0.0


def by_numpy(features: np.ndarray, groups: np.ndarray, settings: LossSettings) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=-1)
    total = 0.0
    if settings.triplet != "none":
        total += settings.triplet_weight * by_loops(settings.triplet, apart, groups, settings.margin)
    pairs = [(i, j) for i in range(len(groups)) for j in range(len(groups)) if i != j]
    alike = [apart[i, j] ** 2 for i, j in pairs if groups[i] == groups[j]]
    total += settings.alignment_weight * (np.mean(alike) if alike else 0.0)
    if settings.uniformity_weight:
        total += settings.uniformity_weight * np.log(np.mean([np.exp(-2 * apart[i, j] ** 2) for i, j in pairs]))
    return float(total)


def by_torch(features: np.ndarray, groups: np.ndarray, settings: LossSettings) -> tuple[float, np.ndarray]:
    """Loss and gradient."""
    tensor = torch.from_numpy(features).requires_grad_()
    loss = metric_loss(tensor, torch.from_numpy(groups), settings)
    loss.backward()
    return loss.item(), tensor.grad.numpy()


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Features and groups of 2 to 12 samples: any mixture of groups, now and then the same features twice."""
    count = draw(st.integers(2, 12))
    groups = draw(npst.arrays(np.int64, count, elements=st.integers(0, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = rng.normal(size=(count, 5)) * draw(st.sampled_from([0.01, 1.0, 30.0]))
    if draw(st.booleans()):
        features[rng.integers(count)] = features[rng.integers(count)]
    return features, groups


@given(batches(), st.sampled_from([*EVERY_LOSS, SUM]), st.sampled_from([0.0, 0.2, 1.5]))
def test_losses_are_those_of_their_definitions(
    batch: tuple[np.ndarray, np.ndarray], settings: LossSettings, margin: float
) -> None:
    features, groups = batch
    # Without a margin the same features twice are a triplet on the edge, which rounding counts in or out.
    assume(margin or len(np.unique(features, axis=0)) == len(features))
    settings = LossSettings(**{**vars(settings), "margin": margin})
    loss, gradient = by_torch(features, groups, settings)
    assert loss == pytest.approx(by_numpy(features, groups, settings), rel=1e-5, abs=1e-6)
    assert np.isfinite(gradient).all()


@given(batches(), st.sampled_from([*EVERY_LOSS, SUM]), st.integers(0, 1000))
def test_gradients_are_the_differences_of_the_definition(
    batch: tuple[np.ndarray, np.ndarray], settings: LossSettings, seed: int
) -> None:
    """Along a random direction; the batches are random, so that no triplet lies on an edge."""
    rng = np.random.default_rng(seed)
    groups, features = batch[1], rng.normal(size=batch[0].shape)
    direction, step = rng.normal(size=features.shape), 1e-6
    one, other = (by_numpy(features + sign * step * direction, groups, settings) for sign in (1, -1))
    here = [by_numpy(features + part * step * direction, groups, settings) for part in (0, 0.5)]
    gradient = by_torch(features, groups, settings)[1]
    edge = abs((here[1] - here[0]) - (one - other) / 4)  # a triplet that comes or goes within the step
    assert (gradient * direction).sum() == pytest.approx((one - other) / (2 * step), abs=1e-4 + 10 * edge / step)


@given(batches(), st.sampled_from([*EVERY_LOSS, SUM]), st.integers(0, 1000))
def test_the_order_of_the_samples_does_not_matter(
    batch: tuple[np.ndarray, np.ndarray], settings: LossSettings, seed: int
) -> None:
    features, groups = np.random.default_rng(seed).normal(size=batch[0].shape), batch[1]
    order = np.random.default_rng(seed).permutation(len(groups))
    loss, gradient = by_torch(features, groups, settings)
    shuffled_loss, shuffled_gradient = by_torch(features[order], groups[order], settings)
    assert shuffled_loss == pytest.approx(loss, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(shuffled_gradient, gradient[order], atol=1e-6)


@pytest.mark.parametrize("settings", EVERY_LOSS, ids=lambda settings: settings.triplet)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identical_features_have_finite_gradients(settings: LossSettings, dtype: torch.dtype) -> None:
    features = torch.ones(8, 16, dtype=dtype).requires_grad_()
    loss = metric_loss(features, torch.arange(8) % 2, settings)
    loss.backward()
    expected = by_numpy(np.ones((8, 16)), np.arange(8) % 2, settings)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert features.grad.dtype == dtype
    assert bool(features.grad.isfinite().all())
    assert features.grad.abs().max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 3]])
def test_without_triplets_the_loss_is_an_exact_0_with_a_graph(kind: str, groups: list[int]) -> None:
    """One class alone has no negatives, four groups of one no positives."""
    features = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = metric_loss(features, torch.tensor(groups), LossSettings(triplet=kind, triplet_weight=1.0, margin=0.2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(4, 6))


def test_alignment_without_two_alike_is_0() -> None:
    features = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = metric_loss(features, torch.arange(3), LossSettings(alignment_weight=1.0))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(3, 6))


@pytest.mark.parametrize("settings", EVERY_LOSS, ids=lambda settings: settings.triplet)
def test_half_precision_under_autocast_is_the_loss_of_the_rounded_features(settings: LossSettings) -> None:
    rounded = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    groups = torch.arange(16) % 3
    features = rounded.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = metric_loss(features, groups, settings)
    loss.backward()
    assert loss.dtype == torch.float32
    expected, gradient = by_torch(rounded.double().numpy(), groups.numpy(), settings)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(features.grad.float().numpy(), gradient, rtol=1e-2, atol=1e-6)


def test_small_distances_keep_their_digits() -> None:
    """A product of matrices in float32 gives 3e-4 where 1e-5 is right."""
    start = torch.randn(1, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = torch.cat([start, start + 1e-5 * torch.roll(start, 1), torch.roll(start, 2)])
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    expected = np.linalg.norm(unit[:, None] - unit[None], axis=-1)
    np.testing.assert_allclose(distances(features).numpy(), expected, rtol=1e-4, atol=1e-7)


def test_real_anchored_draws_no_fakes_together() -> None:
    """The gradient is 0 where all fakes are away from the reals, however far they are from one another."""
    angles = torch.tensor([0.0, 0.1, 3.0, 2.0], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    groups = torch.tensor([0, 0, 1, 1])
    gradients = {}
    for kind in ("batch_all", "real_anchored"):
        loss = metric_loss(features, groups, LossSettings(triplet=kind, triplet_weight=1.0, margin=1.0))
        (gradients[kind],) = torch.autograd.grad(loss, features)
    assert torch.equal(gradients["real_anchored"], torch.zeros_like(features))
    assert gradients["batch_all"].abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_memory_grows_with_the_pairs_and_not_with_the_triplets(name: str) -> None:
    """256 features: the limit of 100 MB would hold no 256 x 256 x 256 numbers of float64."""
    features = torch.randn(BATCH, 768, generator=torch.Generator().manual_seed(0)).requires_grad_()
    step = loss_step(LOSSES[name], features)
    step()
    assert peak_of(step, torch.device("cpu")) < 100e6


@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(triplet="batch_all"), LossSettings(margin=0.2)])
def test_what_is_off_is_off(settings: LossSettings) -> None:
    assert not settings.over_pairs
    assert metric_loss(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), settings).item() == 0


def test_attribution_is_cross_entropy_over_the_groups() -> None:
    rng = np.random.default_rng(0)
    logits, groups = rng.normal(scale=3, size=(50, 4)), rng.integers(0, 4, 50)
    expected = -np.mean(logits[np.arange(50), groups] - np.log(np.exp(logits).sum(axis=1)))
    found = attribution_loss(torch.from_numpy(logits), torch.from_numpy(groups))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-6)


def classification_by_numpy(logits: np.ndarray, labels: np.ndarray) -> float:
    probability = 1 / (1 + np.exp(-logits))
    return float(-np.mean(np.log(np.where(labels == 1, probability, 1 - probability))))


def test_classification_is_the_mean_negative_log_likelihood() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(scale=3, size=50), rng.integers(0, 2, size=50)
    found = classification_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.item(), classification_by_numpy(logits, labels), rtol=1e-5)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([300.0, -300.0], dtype=torch.bfloat16, requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 300
    assert bool(logits.grad.isfinite().all())
