"""Numbers from labels and scores: pure functions of arrays (label 0 real, 1 fake; a high score says fake).

A figure that needs both classes is NaN where one is missing; whoever prints it says "undefined".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

RELIABILITY_BINS = 15
CHUNK_CELLS = 1 << 18  # draws x samples that are in memory at a time: 2 MB stay in a core's cache


class Curve(NamedTuple):
    """The ROC curve from (0, 0) to (1, 1): one point per distinct score, thresholds falling from infinity."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


def both_classes(labels: np.ndarray) -> bool:
    """Whether reals and fakes are both there."""
    return bool(np.any(labels == 1) and np.any(labels == 0))


def area_under_curve(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve as the Mann-Whitney statistic of mid-ranks: ties count one half."""
    if not both_classes(labels):
        return math.nan
    fakes = int(np.sum(labels == 1))
    reals = len(labels) - fakes
    rank_sum = float(rankdata(scores)[labels == 1].sum())
    return (rank_sum - fakes * (fakes + 1) / 2) / (fakes * reals)


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> Curve:
    """The ROC curve, both classes needed; predicted fake where score >= threshold."""
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last_of_ties = np.flatnonzero(np.append(np.diff(scores) != 0, True))
    true_positives = np.cumsum(labels)[last_of_ties]
    false_positives = last_of_ties + 1 - true_positives
    return Curve(
        np.append(0.0, false_positives / false_positives[-1]),
        np.append(0.0, true_positives / true_positives[-1]),
        np.append(np.inf, scores[last_of_ties]),
    )


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean of the precision over the recall steps, without interpolation."""
    if not both_classes(labels):
        return math.nan
    curve = roc_curve(labels, scores)
    true_positives = curve.true_positive_rate[1:] * np.sum(labels == 1)
    false_positives = curve.false_positive_rate[1:] * np.sum(labels == 0)
    precision = true_positives / (true_positives + false_positives)
    return float(np.sum(np.diff(curve.true_positive_rate) * precision))


def equal_error_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """The error where misses equal false alarms, on the ROC curve joined by straight lines."""
    if not both_classes(labels):
        return math.nan
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores)
    gap = false_positive_rate - (1 - true_positive_rate)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    step = false_positive_rate[after] - false_positive_rate[after - 1]
    return float(false_positive_rate[after - 1] + share * step)


def true_positive_rate_at(labels: np.ndarray, scores: np.ndarray, false_positive_rate: float) -> float:
    """The best true positive rate of a threshold whose false positive rate is at most the one given."""
    if not both_classes(labels):
        return math.nan
    curve = roc_curve(labels, scores)
    return float(curve.true_positive_rate[curve.false_positive_rate <= false_positive_rate].max())


def balanced_accuracy(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    """Mean of the accuracy on reals and on fakes; predicted fake where score >= threshold."""
    if not both_classes(labels):
        return math.nan
    predicted = scores >= threshold
    return float((predicted[labels == 1].mean() + (~predicted[labels == 0]).mean()) / 2)


class Reliability(NamedTuple):
    """Of each bin that holds a sample, from low to high: mean stated probability, share of fakes, and count."""

    probability: np.ndarray
    fakes: np.ndarray
    counts: np.ndarray


def reliability_curve(labels: np.ndarray, probabilities: np.ndarray, bins: int = RELIABILITY_BINS) -> Reliability:
    """What share of the samples is fake where some probability was stated; the bins are of equal width."""
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    held = counts > 0
    stated, fakes = (np.bincount(index, weights=each, minlength=bins)[held] for each in (probabilities, labels))
    return Reliability(stated / counts[held], fakes / counts[held], counts[held])


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = RELIABILITY_BINS) -> float:
    """Mean gap of stated probability and share of fakes over the bins, weighted by their counts (Guo et al., 2017)."""
    if len(labels) == 0:
        return math.nan
    curve = reliability_curve(labels, probabilities, bins)
    return float(np.average(np.abs(curve.fakes - curve.probability), weights=curve.counts))


@dataclass(frozen=True)
class Sample:
    """What one AUC is computed from: (n,) labels, (n,) scores, and (n,) names of the clusters to resample."""

    labels: np.ndarray
    scores: np.ndarray
    clusters: np.ndarray


def resampling_weights(clusters: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, clusters) multinomial counts: how often each cluster was drawn, with replacement."""
    drawn = rng.integers(clusters, size=(draws, clusters), dtype=np.int32)
    drawn += np.arange(draws, dtype=np.int32)[:, None] * np.int32(clusters)
    return np.bincount(drawn.ravel(), minlength=draws * clusters).reshape(draws, clusters)


def weighted_areas(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) AUCs in which item i counts `weights[:, clusters[i]]` times; NaN where a class has no weight.

    Each fake beats the weight of the reals below it and half of that at its score: one cumulative sum over
    the sorted reals serves all fakes, exactly, ties included.
    """
    reals, fakes = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    reals = reals[np.argsort(scores[reals])]
    fakes = fakes[np.argsort(scores[fakes])]  # neighbours in memory are neighbours in score: fewer cache misses
    below = np.searchsorted(scores[reals], scores[fakes], side="left")
    up_to = np.searchsorted(scores[reals], scores[fakes], side="right")
    weight_below = np.zeros((len(weights), len(reals) + 1))
    np.cumsum(weights.take(clusters[reals], axis=1), axis=1, out=weight_below[:, 1:])
    fake_weights = weights.take(clusters[fakes], axis=1).astype(np.float64)
    beaten = np.einsum("df,df->d", fake_weights, weight_below.take(below, axis=1))
    beaten_or_tied = np.einsum("df,df->d", fake_weights, weight_below.take(up_to, axis=1))
    pairs = fake_weights.sum(axis=1) * weight_below[:, -1]
    with np.errstate(invalid="ignore"):
        return (beaten + beaten_or_tied) / (2 * pairs)


def bootstrap_areas(samples: Sequence[Sample], draws: int, rng: np.random.Generator) -> np.ndarray:
    """(draws, len(samples)) bootstrap AUCs; a cluster in several samples is drawn in all of them at once."""
    names = pd.unique(np.concatenate([sample.clusters for sample in samples]))
    indexed = [pd.Index(names).get_indexer(sample.clusters) for sample in samples]
    widest = max(len(names), *(len(sample.labels) for sample in samples))
    chunk = max(1, CHUNK_CELLS // widest)
    areas = np.empty((draws, len(samples)))
    for start in range(0, draws, chunk):
        weights = resampling_weights(len(names), min(chunk, draws - start), rng)
        for column, (sample, clusters) in enumerate(zip(samples, indexed, strict=True)):
            areas[start : start + chunk, column] = weighted_areas(sample.labels, sample.scores, clusters, weights)
    return areas
