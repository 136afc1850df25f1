"""From frame scores to a scorecard: frame and video AUC per dataset with intervals, and two models compared.

Everything here is a pure function of Scores: one row per frame with dataset, method ("real" for reals),
video_id, frame_index, identity (empty where unknown), label (0 real, 1 fake), score (probability of fake),
outcome ("ok", or why the frame has no score), and the distortion and its level under which the frame was seen ("none"
and 0 as it is stored). Models are judged by the frames as they are stored. A video is (dataset, method, video_id); its score is the mean
of its frame scores. Videos without a scored frame are excluded, and the coverage says how many there were.

Intervals are 95 % percentile intervals of the bootstrap over persons, since one person's videos are not
independent; a video of nobody known stands for itself. Where nobody has two videos this is the bootstrap over
videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from masm.data.distort import CLEAN
from masm.errors import UserError
from masm.metrics import (
    Sample,
    area_under_curve,
    average_precision,
    balanced_accuracy,
    bootstrap_areas,
    both_classes,
    equal_error_rate,
    expected_calibration_error,
    roc_curve,
    true_positive_rate_at,
)
from masm.scorecard import DatasetRow, Estimate, MethodRow, Scorecard

VIDEO = ["dataset", "method", "video_id"]
FRAME = [*VIDEO, "frame_index"]
COLUMNS = [*FRAME, "identity", "label", "distortion", "level", "score", "outcome"]
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)
CURVE_POINTS = 200

Level = Literal["frame", "video"]


def check_scores(scores: pd.DataFrame) -> None:
    """Raise UserError where a column is missing, a frame stands twice or is "ok" without a finite score."""
    missing = [column for column in COLUMNS if column not in scores]
    if missing:
        raise UserError(f"The scores lack the columns {', '.join(missing)}: score the datasets again.")
    doubled = scores[scores.duplicated([*FRAME, "distortion", "level"])]
    if len(doubled):
        frame = "/".join(map(str, doubled.iloc[0][FRAME]))
        raise UserError(f"{len(doubled)} frames are scored twice, {frame} among them: score the datasets again.")
    bad = (scores["outcome"] == "ok") & ~np.isfinite(scores["score"].astype(float))
    if bad.any():
        frame = "/".join(map(str, scores[bad].iloc[0][FRAME]))
        raise UserError(f"{int(bad.sum())} frames have no finite score, {frame} among them: did training diverge?")


def scored_frames(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of undistorted frames that have a score."""
    check_scores(scores)
    return scores[(scores["outcome"] == "ok") & (scores["distortion"] == CLEAN)]


def video_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per video that has a scored frame: VIDEO columns, label, identity, mean score, count of frames.

    Raises:
        UserError: a video holds both labels.
    """
    videos = scored_frames(scores).groupby(VIDEO, sort=False, dropna=False)
    labels = videos["label"].agg(["min", "max"])
    mixed = labels[labels["min"] != labels["max"]]
    if len(mixed):
        video = "/".join(map(str, mixed.index[0]))
        raise UserError(f"Video {video} has real and fake frames under one method: give its parts names of their own.")
    table = videos.agg(
        label=("label", "first"),
        identity=("identity", "first"),
        score=("score", "mean"),
        frames=("score", "size"),
    )
    return table.reset_index()


def evaluate(scores: pd.DataFrame, threshold: float, draws: int = 10_000, seed: int = 0) -> Scorecard:
    """The scorecard of one model.

    Args:
        scores: the Scores table, test datasets only.
        threshold: a video is called fake where its score is at least this; chosen on the frames of validation data.
        draws: bootstrap draws per interval.
        seed: of the bootstrap; the intervals of a dataset do not depend on which others are there.
    """
    check_scores(scores)
    parts = [part for _, part in scores.groupby("dataset", sort=False)]
    rows = tuple(_dataset_row(part, threshold, draws, seed) for part in parts)
    defined = [index for index, row in enumerate(rows) if math.isfinite(row.video_auc.value)]
    frame_auc = float(np.mean([rows[index].frame_auc for index in defined])) if defined else math.nan
    video_auc = _estimate([as_sample(video_scores(parts[index])) for index in defined], draws, seed)
    return Scorecard(rows, frame_auc, video_auc, threshold)


def _dataset_row(part: pd.DataFrame, threshold: float, draws: int, seed: int) -> DatasetRow:
    frames, videos = scored_frames(part), video_scores(part)
    labels, scores = videos["label"].to_numpy(), videos["score"].to_numpy(dtype=np.float64)
    return DatasetRow(
        dataset=str(part["dataset"].iloc[0]),
        videos=len(videos),
        real_videos=int(np.sum(labels == 0)),
        fake_videos=int(np.sum(labels == 1)),
        frames=len(frames),
        coverage=len(videos) / len(part.drop_duplicates(VIDEO)),
        frame_auc=_area(frames),
        video_auc=_estimate([as_sample(videos)], draws, seed),
        equal_error_rate=equal_error_rate(labels, scores),
        average_precision=average_precision(labels, scores),
        balanced_accuracy=balanced_accuracy(labels, scores, threshold),
        calibration_error=expected_calibration_error(labels, scores),
        true_positive_rates={rate: true_positive_rate_at(labels, scores, rate) for rate in FALSE_POSITIVE_RATES},
        methods=_method_rows(frames, videos, draws, seed),
    )


def _method_rows(frames: pd.DataFrame, videos: pd.DataFrame, draws: int, seed: int) -> tuple[MethodRow, ...]:
    rows = []
    for method in videos.loc[videos["label"] == 1, "method"].unique():
        one_frames = frames[(frames["label"] == 0) | (frames["method"] == method)]
        one_videos = videos[(videos["label"] == 0) | (videos["method"] == method)]
        estimate = _estimate([as_sample(one_videos)], draws, seed)
        count = int((one_videos["label"] == 1).sum())
        rows.append(MethodRow(str(method), count, _area(one_frames), estimate))
    return tuple(rows)


def _area(rows: pd.DataFrame) -> float:
    return area_under_curve(rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64))


def as_sample(rows: pd.DataFrame) -> Sample:
    """The rows as one AUC's input."""
    return Sample(rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64), clusters(rows))


def clusters(rows: pd.DataFrame) -> np.ndarray:
    """What each row (n,) depends on: the person, or the video where the person is unknown."""
    person = rows["identity"].fillna("").astype(str)
    video = rows["dataset"].astype(str) + "/" + rows["method"].astype(str) + "/" + rows["video_id"].astype(str)
    return ("person " + person).where(person != "", "video " + video).to_numpy(dtype=object)


def _estimate(samples: Sequence[Sample], draws: int, seed: int) -> Estimate:
    """Mean AUC over samples with its interval; NaN where there is none or one of them has a single class."""
    if not samples or not all(both_classes(sample.labels) for sample in samples):
        return Estimate(math.nan, math.nan, math.nan)
    value = float(np.mean([area_under_curve(sample.labels, sample.scores) for sample in samples]))
    return with_interval(value, bootstrap_areas(samples, draws, np.random.default_rng((seed,))).mean(axis=1))


def with_interval(value: float, draws: np.ndarray) -> Estimate:
    """Percentile interval; draws that happened to lose a class are left out."""
    defined = draws[np.isfinite(draws)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high))


def macro_video_auc(scores: pd.DataFrame) -> float:
    """Mean video AUC over the datasets that have both classes; NaN where none has."""
    areas = [_area(part) for _, part in video_scores(scores).groupby("dataset", sort=False)]
    defined = [area for area in areas if math.isfinite(area)]
    return float(np.mean(defined)) if defined else math.nan


def paired_bootstrap(
    scores_a: pd.DataFrame,
    scores_b: pd.DataFrame,
    datasets: Sequence[str],
    level: Level = "video",
    draws: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """AUC of model a minus AUC of model b, as the mean over `datasets`, both resampled with the same draws.

    A person who occurs in several datasets is drawn in all of them at once. Datasets of one class are left
    out; where none remains the difference is NaN.

    Raises:
        UserError: a dataset is not there, or the tables differ in their scored frames or labels.
    """
    absent = set(datasets) - set(scores_a["dataset"])
    if absent:
        raise UserError(f"No scores of dataset {', '.join(sorted(absent))}: score it, or leave it out.")
    chosen = [scored_frames(scores[scores["dataset"].isin(datasets)]) for scores in (scores_a, scores_b)]
    check_same_frames(*chosen)
    tables = [video_scores(frames) for frames in chosen] if level == "video" else chosen
    a, b = ([as_sample(table[table["dataset"] == name]) for name in datasets] for table in tables)
    pairs = [pair for pair in zip(a, b, strict=True) if both_classes(pair[0].labels)]
    if not pairs:
        return Estimate(math.nan, math.nan, math.nan)
    samples = [sample for pair in pairs for sample in pair]
    areas = np.array([[area_under_curve(sample.labels, sample.scores) for sample in samples]])
    drawn = bootstrap_areas(samples, draws, np.random.default_rng((seed,)))
    value, differences = (np.mean(each[:, 0::2] - each[:, 1::2], axis=1) for each in (areas, drawn))
    return with_interval(float(value[0]), differences)


def check_same_frames(frames_a: pd.DataFrame, frames_b: pd.DataFrame) -> None:
    """Raise UserError where two models were not scored on the same frames with the same labels."""
    columns = [*FRAME, "label"]
    a, b = (pd.MultiIndex.from_frame(frames[columns]) for frames in (frames_a, frames_b))
    only_one = a.symmetric_difference(b)
    if len(only_one):
        frame = "/".join(map(str, only_one[0]))
        raise UserError(
            f"The two models' scores differ in {len(only_one)} frames or labels, {frame} among them: "
            "a paired comparison needs both models scored on the same frames."
        )


def roc_points(scores: Mapping[str, pd.DataFrame], level: Level = "video") -> pd.DataFrame:
    """ROC curves as rows (dataset, model, fpr, tpr), at most CURVE_POINTS each; one class alone has no curve.

    Args:
        scores: Scores by model name.
        level: whether a point of the sample is a frame or a video.
    """
    curves = []
    for model, table in scores.items():
        rows = video_scores(table) if level == "video" else scored_frames(table)
        for dataset, group in rows.groupby("dataset", sort=False):
            if both_classes(group["label"].to_numpy()):
                curves.append(_curve_rows(group).assign(dataset=dataset, model=model))
    columns = ["dataset", "model", "fpr", "tpr"]
    return pd.concat(curves, ignore_index=True)[columns] if curves else pd.DataFrame(columns=columns)


def _curve_rows(rows: pd.DataFrame) -> pd.DataFrame:
    curve = roc_curve(rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64))
    points = len(curve.thresholds)
    kept = np.unique(np.linspace(0, points - 1, min(points, CURVE_POINTS)).round().astype(int))
    return pd.DataFrame({"fpr": curve.false_positive_rate[kept], "tpr": curve.true_positive_rate[kept]})
