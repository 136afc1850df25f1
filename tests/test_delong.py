from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from masm.delong import delong_covariance, delong_difference, placements
from masm.metrics import area_under_curve
from masm.scorecard import Estimate


def slow_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's equations 2 to 6, pair by pair."""
    fakes, reals = scores[:, labels == 1], scores[:, labels == 0]
    kernel = (fakes[:, :, None] > reals[:, None, :]) + 0.5 * (fakes[:, :, None] == reals[:, None, :])
    areas = kernel.mean(axis=(1, 2))
    covariance = np.zeros((len(scores), len(scores)))
    for a in range(len(scores)):
        for b in range(len(scores)):
            for axis, count in ((2, fakes.shape[1]), (1, reals.shape[1])):
                x, y = kernel[a].mean(axis=axis - 1) - areas[a], kernel[b].mean(axis=axis - 1) - areas[b]
                covariance[a, b] += sum(x * y) / (count - 1) / count
    return areas, covariance


@st.composite
def paired_samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two models' scores of at least two samples of each class, with many ties."""
    scores = st.tuples(st.integers(0, 8), st.integers(0, 8))
    classes = [draw(st.lists(scores, min_size=2, max_size=15)) for _ in range(2)]
    labels = np.repeat([0, 1], [len(rows) for rows in classes])
    return labels, np.array([*classes[0], *classes[1]]).T / 8


@given(paired_samples())
def test_covariance_equals_that_over_all_pairs(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    areas, covariance = delong_covariance(labels, scores)
    slow_areas, slow = slow_covariance(labels, scores)
    np.testing.assert_allclose(areas, slow_areas, atol=1e-9)
    np.testing.assert_allclose(covariance, slow, atol=1e-9)
    assert areas[0] == pytest.approx(area_under_curve(labels, scores[0]), abs=1e-9)
    for side in placements(labels, scores[1]):
        assert side.mean() == pytest.approx(areas[1], abs=1e-9)


@given(paired_samples())
def test_difference_is_the_normal_test_of_the_covariance(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, (a, b) = sample
    found, reverse = delong_difference(labels, a, b), delong_difference(labels, b, a)
    areas, covariance = slow_covariance(labels, np.stack([a, b]))
    deviation = math.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0))
    assert found.estimate.value == pytest.approx(areas[0] - areas[1], abs=1e-9)
    assert found.estimate.high - found.estimate.low == pytest.approx(2 * 1.959963984540054 * deviation, abs=1e-6)
    assert reverse.p_value == pytest.approx(found.p_value, abs=1e-6)
    assert -reverse.estimate.value == pytest.approx(found.estimate.value, abs=1e-12)
    if deviation > 1e-6:
        expected = math.erfc(abs(areas[0] - areas[1]) / deviation / math.sqrt(2))
        assert found.p_value == pytest.approx(expected, abs=1e-6)


def test_no_difference_and_certain_difference() -> None:
    labels, scores = np.repeat([0, 1], 5), np.arange(10.0)
    assert delong_difference(labels, scores, scores) == (Estimate(0, 0, 0), 1)
    assert delong_difference(labels, scores, -scores) == (Estimate(1, 1, 1), 0)
    overlapping = np.array([0.1, 0.4, 0.5, 0.6, 0.9, 0.3, 0.5, 0.7, 0.8, 1.0])
    found = delong_difference(labels, overlapping, overlapping)
    assert found == (Estimate(0, 0, 0), 1)


def covariances(scores: np.ndarray, fakes: int) -> tuple[np.ndarray, np.ndarray]:
    """AUCs (r, k) and covariances (r, k, k) of r replicates at once, by `delong_covariance`."""
    labels = np.repeat([1, 0], [fakes, scores.shape[2] - fakes])
    found = [delong_covariance(labels, one) for one in scores]
    return np.stack([areas for areas, _ in found]), np.stack([covariance for _, covariance in found])


@pytest.mark.slow
def test_intervals_cover_the_truth_and_the_test_keeps_its_level() -> None:
    """Two correlated models on 60 fakes and 90 reals: normal scores, whose AUC is known."""
    rng = np.random.default_rng((12,))
    replicates, fakes, reals = 3000, 60, 90
    shared = rng.normal(size=(replicates, 1, fakes + reals))
    scores = math.sqrt(0.5) * shared + math.sqrt(0.5) * rng.normal(size=(replicates, 2, fakes + reals))
    scores[:, :, :fakes] += 1.2
    truth = norm.cdf(1.2 / math.sqrt(2))
    areas, covariance = covariances(scores, fakes)
    reach = 1.96 * np.sqrt(covariance[:, 0, 0])
    assert 0.93 <= np.mean(np.abs(areas[:, 0] - truth) <= reach) <= 0.97
    variance = covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    assert 0.93 <= np.mean(np.abs(areas[:, 0] - areas[:, 1]) <= 1.96 * np.sqrt(variance)) <= 0.97
    assert variance.mean() == pytest.approx(np.var(areas[:, 0] - areas[:, 1]), rel=0.1)
