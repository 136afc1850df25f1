"""Curves of the scores as rows, for `dvc plots` and the report: ROC, DET and reliability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from scipy.stats import norm

from masm.decisions import LEVELS, Decision, Level
from masm.evaluation import scored_frames, video_scores
from masm.metrics import both_classes, reliability_curve, roc_curve

CURVE_POINTS = 200


def roc_points(scores: Mapping[str, pd.DataFrame], level: Level = "video") -> pd.DataFrame:
    """ROC curves as rows (dataset, model, fpr, tpr), at most CURVE_POINTS each; one class alone has no curve.

    Args:
        scores: Scores by model name.
        level: whether a point of the sample is a frame or a video.
    """
    curves = []
    for model, dataset, rows in _groups(scores, level):
        if both_classes(rows["label"].to_numpy()):
            curves.append(_curve_rows(rows).assign(dataset=dataset, model=model))
    columns = ["dataset", "model", "fpr", "tpr"]
    return pd.concat(curves, ignore_index=True)[columns] if curves else pd.DataFrame(columns=columns)


def det_points(roc: pd.DataFrame) -> pd.DataFrame:
    """The points of `roc_points` as detection error trade-off (Martin et al., 1997): fpr against fnr, the misses.

    Returns:
        Rows (dataset, model, fpr, fnr, fpr_deviate, fnr_deviate), the latter two as normal deviates: on these axes
        normal scores lie on a straight line. Rates of 0 and 1 have no deviate, and no row.
    """
    points = roc.assign(fnr=1 - roc["tpr"].astype(float))
    inside = points[["fpr", "fnr"]].apply(lambda rate: rate.between(0, 1, inclusive="neither")).all(axis=1)
    points = points[inside].drop(columns="tpr")
    deviates = {f"{rate}_deviate": norm.ppf(points[rate].astype(float)) for rate in ("fpr", "fnr")}
    return points.assign(**deviates).reset_index(drop=True)


def reliability_points(
    scores: Mapping[str, pd.DataFrame], decisions: Mapping[str, Mapping[Level, Decision]]
) -> pd.DataFrame:
    """Reliability curves of both levels, before and after calibration.

    Args:
        scores: Scores by model name.
        decisions: what each model decides by.

    Returns:
        Rows (dataset, model, level, calibrated, probability, fakes, count): of the samples whose stated probability
        fell into a bin, its mean, the share of fakes, and how many they were. One class alone has no curve.
    """
    curves = []
    for level in LEVELS:
        for model, dataset, rows in _groups(scores, level):
            labels, given = rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64)
            stated = {False: given, True: decisions[model][level].calibration.probability(given)}
            for calibrated, probabilities in stated.items() if both_classes(labels) else ():
                points = zip(*reliability_curve(labels, probabilities), strict=True)
                curves += [(dataset, model, level, calibrated, *point) for point in points]
    columns = ["dataset", "model", "level", "calibrated", "probability", "fakes", "count"]
    return pd.DataFrame(curves, columns=columns)


def _groups(scores: Mapping[str, pd.DataFrame], level: Level) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Model, dataset, and what that model scored of it."""
    for model, table in scores.items():
        rows = video_scores(table) if level == "video" else scored_frames(table)
        for dataset, group in rows.groupby("dataset", sort=False):
            yield model, str(dataset), group


def _curve_rows(rows: pd.DataFrame) -> pd.DataFrame:
    curve = roc_curve(rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64))
    points = len(curve.thresholds)
    kept = np.unique(np.linspace(0, points - 1, min(points, CURVE_POINTS)).round().astype(int))
    return pd.DataFrame({"fpr": curve.false_positive_rate[kept], "tpr": curve.true_positive_rate[kept]})
