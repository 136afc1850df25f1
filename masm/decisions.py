"""What a detector decides by: at the level of a frame and of a video, a threshold and a calibration of the score.

Both are fitted on validation data at the end of `train` and kept in the detector's card. A score is the sigmoid of
the logit, in [0, 1], high for fake; that of a video is the mean of its frames' scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from masm.errors import UserError

Level = Literal["frame", "video"]
LEVELS: tuple[Level, ...] = ("frame", "video")
CalibrationKind = Literal["temperature", "isotonic"]
TEMPERATURES = (0.05, 100.0)  # beyond these a fit says that the data hold no information
SATURATED = 1e-15  # a score nearer to 0 or 1 has lost its logit to rounding


@dataclass(frozen=True)
class Temperature:
    """Probability of fake = sigmoid(logit(score) / temperature + bias) (Platt, 1999)."""

    kind: ClassVar[CalibrationKind] = "temperature"
    temperature: float = 1.0
    bias: float = 0.0

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probabilities in [0, 1] of scores in [0, 1], float64 of the same shape."""
        return np.asarray(expit(_logits(scores) / self.temperature + self.bias))


@dataclass(frozen=True)
class Isotonic:
    """Probability of fake by a rising line through knots (Zadrozny and Elkan, 2002); level beyond the outer ones."""

    kind: ClassVar[CalibrationKind] = "isotonic"
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Calibrated probabilities in [0, 1] of scores in [0, 1], float64 of the same shape."""
        return np.asarray(np.interp(np.asarray(scores, dtype=np.float64), self.scores, self.probabilities))


Calibration = Temperature | Isotonic


@dataclass(frozen=True)
class Decision:
    """How one level decides: fake where the score is at least `threshold`."""

    threshold: float
    calibration: Calibration

    def card(self) -> dict[str, Any]:
        """The JSON values that stand in the detector's card."""
        calibration = {"kind": self.calibration.kind, **asdict(self.calibration)}
        return {"threshold": self.threshold, "calibration": calibration}


def fit_decisions(
    labels: np.ndarray, scores: np.ndarray, videos: np.ndarray, false_positive_rate: float, kind: CalibrationKind
) -> dict[Level, Decision]:
    """The decisions of both levels, that of videos fitted on the means over the frames of each.

    Args:
        labels: (n,) of validation frames, 0 real and 1 fake.
        scores: (n,) in [0, 1].
        videos: (n,) numbers from 0; frames of one video have the same, and the same label.
        false_positive_rate: share of the reals that may be called fake, at each level.
        kind: of the calibrations.
    """
    _, first, members, counts = np.unique(videos, return_index=True, return_inverse=True, return_counts=True)
    means = np.bincount(members, weights=scores) / counts
    levels: dict[Level, tuple[np.ndarray, np.ndarray]] = {"frame": (labels, scores), "video": (labels[first], means)}
    return {level: fit_decision(*data, false_positive_rate, kind) for level, data in levels.items()}


def fit_decision(
    labels: np.ndarray, scores: np.ndarray, false_positive_rate: float, kind: CalibrationKind
) -> Decision:
    """Threshold and calibration of one level, from (n,) labels and (n,) scores of validation data.

    Raises:
        UserError: a class is missing.
    """
    calibration = fit_temperature(labels, scores) if kind == "temperature" else fit_isotonic(labels, scores)
    return Decision(choose_threshold(labels, scores, false_positive_rate), calibration)


def read_decisions(card: Mapping[str, Any]) -> dict[Level, Decision]:
    """The decisions that a detector's card holds (`Detector.card`).

    Raises:
        UserError: the card is older than these, or damaged.
    """
    try:
        return {level: _read_decision(card["decisions"][level]) for level in LEVELS}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"detector.json does not say how the detector decides about frames and videos ({error!r}): train it again."
        ) from None


def _read_decision(entry: Mapping[str, Any]) -> Decision:
    values = dict(entry["calibration"])
    kind = values.pop("kind")
    if kind == Temperature.kind:
        return Decision(float(entry["threshold"]), Temperature(**values))
    if kind == Isotonic.kind:
        knots = (tuple(map(float, values[name])) for name in ("scores", "probabilities"))
        return Decision(float(entry["threshold"]), Isotonic(*knots))
    raise ValueError(f"no calibration is called {kind}")


def choose_threshold(labels: np.ndarray, scores: np.ndarray, false_positive_rate: float) -> float:
    """The lowest threshold that calls at most this share of the reals fake (fake where score >= threshold).

    It lies half way to the next score above, so that rounding on another device does not move a decision.

    Raises:
        UserError: there is no real, or the rate is not from 0 to below 1.
    """
    reals = np.sort(scores[labels == 0])[::-1]
    if len(reals) == 0 or not 0 <= false_positive_rate < 1:
        raise UserError(
            f"A threshold needs real validation samples (there are {len(reals)}) and a false positive rate "
            f"from 0 to below 1 (it is {false_positive_rate}): check the validation split and the settings."
        )
    # The small addend keeps 0.07 x 100 = 7.000000000000001 and 0.29 x 100 = 28.999999999999996 at 7 and 29.
    highest_called_real = float(reals[math.floor(false_positive_rate * len(reals) + 1e-9)])
    above = scores[scores > highest_called_real]
    just_above = float(np.nextafter(highest_called_real, np.inf))
    return max(just_above, (highest_called_real + float(above.min())) / 2) if len(above) else just_above


def fit_temperature(labels: np.ndarray, scores: np.ndarray) -> Temperature:
    """Maximum-likelihood temperature and bias on held-out data (Platt, 1999).

    Platt's targets (n + 1) / (n + 2) and 1 / (n + 2) keep the optimum finite where the classes are separable;
    a negative slope is not allowed, since calibration must not turn a detector round.

    Raises:
        UserError: a class is missing.
    """
    _check_classes(labels)
    fakes = int(np.sum(labels == 1))
    reals = len(labels) - fakes
    targets = np.where(labels == 1, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
    logits = _logits(scores)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * logits + parameters[1]
        error = expit(z) - targets
        value = float(np.mean(np.logaddexp(0, z) - targets * z))
        return value, np.array([np.mean(error * logits), np.mean(error)])

    slopes = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0])
    options = {"ftol": 1e-15, "gtol": 1e-10}
    fit = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[slopes, (None, None)], options=options)
    return Temperature(temperature=float(1 / fit.x[0]), bias=float(fit.x[1]))


def fit_isotonic(labels: np.ndarray, scores: np.ndarray) -> Isotonic:
    """The rising step function of least squares on held-out data, its steps joined by straight lines.

    Equal scores have one probability. Of each level stretch the two ends are knots.

    Raises:
        UserError: a class is missing.
    """
    _check_classes(labels)
    knots, members, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.bincount(members, weights=labels) / counts
    levels = isotonic_regression(means, weights=counts).x
    risen = np.diff(levels) > 0
    ends = np.append(True, risen) | np.append(risen, True)
    return Isotonic(tuple(knots[ends].tolist()), tuple(levels[ends].tolist()))


def _check_classes(labels: np.ndarray) -> None:
    if np.all(labels == 1) or np.all(labels == 0):
        raise UserError("Calibration needs reals and fakes in the validation split: it has one class only.")


def _logits(scores: np.ndarray) -> np.ndarray:
    """Finite logits of scores in [0, 1]."""
    return np.asarray(logit(np.clip(np.asarray(scores, dtype=np.float64), SATURATED, 1 - SATURATED)))
