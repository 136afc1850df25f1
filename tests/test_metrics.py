from __future__ import annotations

import math
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from masm.decisions import choose_threshold
from masm.metrics import (
    Sample,
    area_under_curve,
    average_precision,
    balanced_accuracy,
    bootstrap_areas,
    equal_error_rate,
    expected_calibration_error,
    reliability_curve,
    resampling_weights,
    roc_curve,
    true_positive_rate_at,
    weighted_areas,
)


def count_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUC by its definition: the share of (fake, real) pairs in the right order."""
    fakes, reals = scores[labels == 1], scores[labels == 0]
    wins = [1.0 if fake > real else 0.5 if fake == real else 0.0 for fake in fakes for real in reals]
    return sum(wins) / len(wins)


@st.composite
def tied_samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Both classes, few distinct scores, so that ties within and between classes are common."""
    extra = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), max_size=40))
    rows = [(0, draw(st.integers(0, 6))), (1, draw(st.integers(0, 6))), *extra]
    labels, scores = np.array(rows).T
    return labels, scores / 6


@given(tied_samples())
def test_curve_figures_equal_scikit_learn_with_ties(sample: tuple[np.ndarray, np.ndarray]) -> None:
    labels, scores = sample
    assert area_under_curve(labels, scores) == pytest.approx(count_pairs(labels, scores), abs=1e-12)
    expected_area = sklearn_metrics.roc_auc_score(labels, scores)
    assert area_under_curve(labels, scores) == pytest.approx(expected_area, abs=1e-9)
    expected_precision = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected_precision, abs=1e-9)
    expected = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip(roc_curve(labels, scores), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@given(tied_samples())
def test_equal_error_rate_lies_on_the_curve_where_misses_equal_false_alarms(
    sample: tuple[np.ndarray, np.ndarray],
) -> None:
    """Where the straight pieces of scikit-learn's curve cross the line of equal errors, in fractions."""
    reals, fakes = (int(np.sum(sample[0] == label)) for label in (0, 1))
    false_alarms, hits, _ = sklearn_metrics.roc_curve(*sample, drop_intermediate=False)
    corners = [
        (Fraction(round(x * reals), reals), Fraction(round(y * fakes), fakes))
        for x, y in zip(false_alarms, hits, strict=True)
    ]
    for (x, y), (right, up) in pairwise(corners):
        if x + y <= 1 <= right + up:
            crossing = x + (1 - x - y) / (right + up - x - y) * (right - x)
    assert equal_error_rate(*sample) == pytest.approx(float(crossing), abs=1e-9)


def test_equal_error_rate_of_a_known_case() -> None:
    labels = np.array([0] * 10 + [1] * 10)
    scores = np.concatenate([np.arange(10), np.arange(8, 18)])  # real 8, 9 tie with fake 8, 9
    assert equal_error_rate(labels, scores + np.where(labels == 1, 0.5, 0)) == pytest.approx(0.1)
    assert equal_error_rate(labels, np.where(labels == 1, 1.0, 0.0)) == 0
    assert equal_error_rate(labels, np.where(labels == 1, 0.0, 1.0)) == 1


@given(tied_samples(), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_operating_points_equal_a_search_over_all_thresholds(
    sample: tuple[np.ndarray, np.ndarray], limit: float
) -> None:
    labels, scores = sample
    candidates = np.append(np.unique(scores), np.inf)
    rates = [((scores >= t)[labels == 0].mean(), (scores >= t)[labels == 1].mean()) for t in candidates]
    best = max(hit for false_alarm, hit in rates if false_alarm <= limit)
    assert true_positive_rate_at(labels, scores, limit) == pytest.approx(best, abs=1e-9)
    threshold = choose_threshold(labels, scores, limit)
    assert (scores >= threshold)[labels == 0].mean() <= limit
    assert (scores >= threshold)[labels == 1].mean() == pytest.approx(best)
    assert balanced_accuracy(labels, scores, threshold) == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, scores >= threshold), abs=1e-9
    )


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_undefined(label: int) -> None:
    labels, scores = np.full(4, label), np.arange(4.0)
    figures = [
        area_under_curve(labels, scores),
        average_precision(labels, scores),
        equal_error_rate(labels, scores),
        true_positive_rate_at(labels, scores, 0.1),
        balanced_accuracy(labels, scores, 0.5),
    ]
    assert all(math.isnan(figure) for figure in figures)


def test_calibration_error_of_a_known_case() -> None:
    labels = np.array([0, 1, 1, 1])
    probabilities = np.array([0.05, 0.05, 0.95, 1.0])
    expected = 0.5 * abs(0.5 - 0.05) + 0.5 * abs(1 - 0.975)
    assert expected_calibration_error(labels, probabilities, bins=10) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=60))
def test_reliability_equals_a_loop_over_the_bins(rows: list[tuple[int, int]]) -> None:
    labels, steps = np.array(rows).T
    stated = steps / 30
    curve, error = reliability_curve(labels, stated, bins=7), 0.0
    place = 0
    for low in range(7):
        inside = [(y, p) for y, p in zip(labels, stated, strict=True) if min(int(p * 7), 6) == low]
        if inside:
            share, mean = (sum(each) / len(inside) for each in zip(*inside, strict=True))
            assert (curve.fakes[place], curve.probability[place]) == pytest.approx((share, mean), abs=1e-12)
            assert curve.counts[place] == len(inside)
            error += len(inside) / len(labels) * abs(share - mean)
            place += 1
    assert place == len(curve.counts)
    assert expected_calibration_error(labels, stated, bins=7) == pytest.approx(error, abs=1e-9)


def clustered_sample(seed: int, people: int, tied: bool) -> Sample:
    rng = np.random.default_rng((seed, people))
    clusters = rng.integers(people, size=6 * people)
    labels = rng.integers(0, 2, 6 * people)
    scores = rng.normal(labels, 1.5)
    names = np.array([f"person {index}" for index in clusters], dtype=object)
    return Sample(labels, np.round(scores, 1) if tied else scores, names)


@pytest.mark.parametrize("tied", [True, False])
def test_weighted_areas_equal_a_slow_loop_over_repeated_samples(tied: bool) -> None:
    sample = clustered_sample(1, 9, tied)
    names, clusters = np.unique(sample.clusters, return_inverse=True)
    weights = resampling_weights(len(names), 30, np.random.default_rng((3,)))
    assert np.all(weights.sum(axis=1) == len(names))
    fast = weighted_areas(sample.labels, sample.scores, clusters, weights)
    for weight, area in zip(weights, fast, strict=True):
        drawn = np.repeat(np.arange(len(clusters)), weight[clusters])
        assert area == pytest.approx(count_pairs(sample.labels[drawn], sample.scores[drawn]), abs=1e-12)


def test_bootstrap_does_not_depend_on_the_size_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [clustered_sample(1, 9, True), clustered_sample(2, 7, False)]
    whole = bootstrap_areas(samples, 50, np.random.default_rng((0,)))
    monkeypatch.setattr("masm.metrics.CHUNK_CELLS", 540)
    np.testing.assert_array_equal(bootstrap_areas(samples, 50, np.random.default_rng((0,))), whole)


def test_a_draw_that_loses_a_class_is_undefined() -> None:
    weights = np.array([[2, 0], [1, 1]])
    areas = weighted_areas(np.array([0, 1]), np.array([0.1, 0.9]), np.array([0, 1]), weights)
    assert math.isnan(areas[0])
    assert areas[1] == 1


@settings(max_examples=20)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_resampling_weights_are_draws_with_replacement(clusters: int, seed: int) -> None:
    weights = resampling_weights(clusters, 400, np.random.default_rng((seed,)))
    assert weights.shape == (400, clusters)
    assert np.all(weights.sum(axis=1) == clusters)
    assert weights.mean(axis=0) == pytest.approx(np.ones(clusters), abs=0.35)
    assert weights.var() == pytest.approx(1 - 1 / clusters, rel=0.25)


def test_ten_thousand_draws_of_five_thousand_videos_are_quick() -> None:
    rng = np.random.default_rng((0,))
    labels = rng.integers(0, 2, 5000)
    sample = Sample(labels, rng.normal(labels), np.arange(5000).astype(str).astype(object))
    start = time.perf_counter()
    areas = bootstrap_areas([sample], 10_000, rng)
    assert time.perf_counter() - start < 6  # 0.4 s on an idle core; the rest is room for busy machines
    assert areas.mean() == pytest.approx(area_under_curve(labels, sample.scores), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("per_person", [1, 6])
def test_interval_covers_the_truth(per_person: int) -> None:
    """95 % intervals over persons hold although a person's videos share most of their deviation."""
    rng = np.random.default_rng((11, per_person))
    truth = 0.5 * (1 + math.erf(1.2 / 2))  # P(N(1.2, 2) > 0): two unit normals 1.2 apart
    covered = 0
    for _ in range(1000):
        person = np.repeat(np.arange(120), per_person)
        labels = person % 2
        shared, own = rng.normal(size=120)[person], rng.normal(size=len(person))
        scores = math.sqrt(0.8) * shared + math.sqrt(0.2) * own + 1.2 * labels
        sample = Sample(labels, scores, person.astype(str).astype(object))
        low, high = np.percentile(bootstrap_areas([sample], 1000, rng), [2.5, 97.5])
        covered += bool(low <= truth <= high)
    assert 0.93 <= covered / 1000 <= 0.97
