from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from masm.decisions import (
    Decision,
    Isotonic,
    Temperature,
    choose_threshold,
    fit_decision,
    fit_decisions,
    fit_isotonic,
    fit_temperature,
    read_decisions,
)
from masm.errors import UserError
from masm.metrics import expected_calibration_error


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def test_threshold_counts_shares_that_floating_point_cannot_hold() -> None:
    labels, scores = np.zeros(100, dtype=int), np.arange(100) / 100
    assert (scores >= choose_threshold(labels, scores, 0.29)).sum() == 29
    assert (scores >= choose_threshold(labels, scores, 0.0)).sum() == 0


def test_threshold_keeps_away_from_the_scores() -> None:
    threshold = choose_threshold(np.array([0, 0, 1]), np.array([0.2, 0.4, 0.8]), 0.0)
    assert threshold == pytest.approx(0.6)


def test_threshold_without_reals_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="real validation samples"):
        choose_threshold(np.ones(3), np.arange(3.0), 0.05)


def test_temperature_recovers_the_distortion_of_true_log_odds() -> None:
    rng = np.random.default_rng((5, 1))
    log_odds = rng.normal(0, 2, 40_000)
    labels = (rng.random(40_000) < sigmoid(log_odds)).astype(int)
    scores = sigmoid(3 * (log_odds - 0.5))
    calibration = fit_temperature(labels, scores)
    assert calibration.temperature == pytest.approx(3, rel=0.05)
    assert calibration.bias == pytest.approx(0.5, abs=0.05)
    after = expected_calibration_error(labels, calibration.probability(scores))
    assert after < 0.01 < 0.05 < expected_calibration_error(labels, scores)


def test_temperature_equals_unpenalised_logistic_regression_on_large_data() -> None:
    rng = np.random.default_rng((5, 2))
    labels = rng.integers(0, 2, 20_000)
    logits = rng.normal(4 * labels - 1, 3)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    calibration = fit_temperature(labels, sigmoid(logits))
    assert 1 / calibration.temperature == pytest.approx(reference.coef_[0, 0], rel=2e-3)
    assert calibration.bias == pytest.approx(reference.intercept_[0], abs=5e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])  # of 1e3, all scores are 0 or 1
def test_temperature_of_separable_or_reversed_data_stays_finite_and_never_turns_round(scale: float) -> None:
    labels = np.array([0] * 20 + [1] * 20)
    logits = scale * np.linspace(-1, 1, 40)
    with np.errstate(over="ignore"):
        both = sigmoid(logits), sigmoid(-logits)
    for scores in both:
        calibration = fit_temperature(labels, scores)
        probability = calibration.probability(scores)
        assert calibration.temperature > 0
        assert np.isfinite(calibration.bias)
        assert np.all((probability > 0) & (probability < 1))
    # Platt's targets: 40 separable samples never justify more certainty than 21 / 22 on average.
    sure = fit_temperature(labels, both[0]).probability(both[0])
    assert sure[labels == 1].mean() <= 21 / 22 + 1e-3


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), max_size=60))
def test_isotonic_equals_scikit_learn_with_ties(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([(0, 4), (1, 4), *rows]).T
    scores = scores / 9
    asked = np.append(np.linspace(0, 1, 101), scores)
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores, labels).predict(asked)
    np.testing.assert_allclose(fit_isotonic(labels, scores).probability(asked), expected, atol=1e-9)


def test_isotonic_recovers_a_distortion_that_no_temperature_has() -> None:
    rng = np.random.default_rng((5, 3))
    scores = rng.random(40_000)
    labels = (rng.random(40_000) < np.sin(np.pi * scores / 2) ** 4).astype(int)
    errors = {
        fit.__name__: expected_calibration_error(labels, fit(labels, scores).probability(scores))
        for fit in (fit_temperature, fit_isotonic)
    }
    assert errors["fit_isotonic"] < 0.005 < errors["fit_temperature"]
    assert len(fit_isotonic(labels, scores).scores) < 1000


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibration_needs_both_classes(kind: str) -> None:
    with pytest.raises(UserError, match="one class"):
        fit_decision(np.zeros(5), np.linspace(0, 1, 5), 0.05, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_each_level_is_fitted_on_its_own_and_comes_back_from_the_card(kind: str) -> None:
    rng = np.random.default_rng((6,))
    videos = rng.permutation(np.repeat(np.arange(60), 4)) * 3  # numbers need not follow on each other
    labels = videos // 3 % 2
    scores = sigmoid(rng.normal(2 * labels - 1, 1.5))
    decisions = fit_decisions(labels, scores, videos, 0.1, kind)  # type: ignore[arg-type]
    names = np.unique(videos)
    means = np.array([scores[videos == name].mean() for name in names])
    assert decisions["frame"] == fit_decision(labels, scores, 0.1, kind)  # type: ignore[arg-type]
    video = fit_decision(names // 3 % 2, means, 0.1, kind)  # type: ignore[arg-type]
    assert decisions["video"].threshold == pytest.approx(video.threshold, abs=1e-12)
    asked = np.linspace(0, 1, 50)
    np.testing.assert_allclose(
        decisions["video"].calibration.probability(asked), video.calibration.probability(asked), atol=1e-6
    )
    assert decisions["video"].threshold != decisions["frame"].threshold
    card = json.loads(json.dumps({"decisions": {level: each.card() for level, each in decisions.items()}}))
    assert read_decisions(card) == decisions


FRAME = {"threshold": 0.5, "calibration": {"kind": "temperature", "temperature": 1.0, "bias": 0.0}}


@pytest.mark.parametrize(
    "card",
    [
        {"threshold": 0.5, "calibration": {"temperature": 1.0, "bias": 0.0}},  # as it was before
        {"decisions": {"frame": FRAME}},
        {"decisions": {"frame": FRAME, "video": {**FRAME, "calibration": {"kind": "magic"}}}},
        {"decisions": {"frame": FRAME, "video": {**FRAME, "calibration": {"kind": "temperature", "slope": 1}}}},
    ],
)
def test_an_older_or_damaged_card_is_said_to_be_so(card: dict[str, object]) -> None:
    with pytest.raises(UserError, match="train it again"):
        read_decisions(card)


def test_saturated_scores_have_probabilities_short_of_certain() -> None:
    probability = Decision(0.5, Temperature(10.0, 0.0)).calibration.probability(np.array([0.0, 0.5, 1.0]))
    assert 0 < probability[0] < 0.05
    assert probability[1] == 0.5
    assert 0.95 < probability[2] < 1
    assert Isotonic((0.2, 0.4), (0.3, 0.9)).probability(np.array([0.0, 0.3, 1.0])).tolist() == [
        0.3,
        pytest.approx(0.6),
        0.9,
    ]
