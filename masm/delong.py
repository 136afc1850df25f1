"""The variance of an AUC, and the difference of two on the same samples (DeLong, DeLong and Clarke-Pearson, 1988).

The samples are taken for independent of each other: where one person has several videos, the bootstrap over persons
is right and this is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from masm.scorecard import Estimate

NORMAL_975 = float(norm.ppf(0.975))


class Difference(NamedTuple):
    """AUC of one model minus that of another, and the two-sided probability of such a one by chance alone."""

    estimate: Estimate
    p_value: float


def placements(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each fake the share of reals below it, and of each real the share of fakes above it; ties count one half.

    By mid-ranks in O(n log n) (Sun and Xu, 2014, equation 8); the mean of either is the AUC.
    """
    fakes, reals = scores[labels == 1], scores[labels == 0]
    ranks = rankdata(np.concatenate([fakes, reals]))
    below = (ranks[: len(fakes)] - rankdata(fakes)) / len(reals)
    above = 1 - (ranks[len(fakes) :] - rankdata(reals)) / len(fakes)
    return below, above


def delong_covariance(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs (k,) of k models and their covariance (k, k), from (n,) labels and (k, n) scores.

    At least two samples of each class are needed.
    """
    fakes, reals = (np.stack(each) for each in zip(*(placements(labels, one) for one in scores), strict=True))
    covariance = np.atleast_2d(np.cov(fakes)) / fakes.shape[1] + np.atleast_2d(np.cov(reals)) / reals.shape[1]
    return fakes.mean(axis=1), covariance


def delong_difference(labels: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray) -> Difference:
    """AUC of scores a minus that of scores b, both (n,) of the same samples, with 95 % interval and p-value."""
    areas, covariance = delong_covariance(labels, np.stack([scores_a, scores_b]))
    contrast = np.array([1.0, -1.0])
    value, deviation = float(contrast @ areas), math.sqrt(max(contrast @ covariance @ contrast, 0.0))
    reach = NORMAL_975 * deviation
    if deviation == 0:  # the models order all pairs alike, or both are beyond all doubt
        return Difference(Estimate(value, value, value), float(value == 0))
    return Difference(Estimate(value, value - reach, value + reach), float(2 * norm.sf(abs(value) / deviation)))
