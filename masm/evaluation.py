"""From frame scores to a scorecard: frame and video AUC per dataset with intervals, and two models compared.

Everything here is a pure function of Scores: one row per frame with dataset, method ("real" for reals),
video_id, frame_index, identity (empty where unknown), label (0 real, 1 fake), score (probability of fake),
outcome ("ok", or why the frame has no score), and the distortion and its level under which the frame was seen ("none"
and 0 as it is stored). Models are judged by the frames as they are stored; `masm.robustness` looks at the others. A
video is (dataset, method, video_id); its score is the mean of its frame scores. Videos without a scored frame are
excluded, and the coverage says how many there were.

Intervals are 95 % percentile intervals of the bootstrap over persons, since one person's videos are not
independent; a video of nobody known stands for itself. Where nobody has two videos this is the bootstrap over
videos.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from masm.data.distort import CLEAN
from masm.decisions import Decision, Level
from masm.delong import Difference, delong_difference
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
    true_positive_rate_at,
)
from masm.scorecard import (
    FALSE_POSITIVE_RATES,
    DatasetRow,
    Estimate,
    Figures,
    MethodRow,
    Scorecard,
    mean_figures,
)

VIDEO = ["dataset", "method", "video_id"]
FRAME = [*VIDEO, "frame_index"]
COLUMNS = [*FRAME, "identity", "label", "distortion", "level", "score", "outcome"]


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
    return video_means(scored_frames(scores))


def video_means(frames: pd.DataFrame) -> pd.DataFrame:
    """The same of frames that were chosen from `scores` otherwise: of those that are given, each once and scored."""
    videos = frames.groupby(VIDEO, sort=False, dropna=False)
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


def evaluate(
    scores: pd.DataFrame,
    decisions: Mapping[Level, Decision],
    draws: int = 10_000,
    seed: int = 0,
    left_out: Collection[str] = (),
) -> Scorecard:
    """The scorecard of one model.

    Args:
        scores: the Scores table, test datasets only.
        decisions: what the model decides by, fitted on validation data.
        draws: bootstrap draws per interval.
        seed: of the bootstrap; the intervals of a dataset do not depend on which others are there.
        left_out: datasets that stay out of the macro means, since their reals and fakes come from different sources.
    """
    check_scores(scores)
    rows = tuple(_dataset_row(part, decisions, draws, seed) for _, part in scores.groupby("dataset", sort=False))
    judged = [row for row in rows if row.dataset not in left_out and math.isfinite(row.video_auc.value)]
    names = [row.dataset for row in judged]
    return Scorecard(
        datasets=rows,
        frame=mean_figures([row.frame for row in judged]),
        video=mean_figures([row.video for row in judged]),
        video_auc=macro_estimate(scores[scores["dataset"].isin(names)], draws, seed),
        thresholds={level: decision.threshold for level, decision in decisions.items()},
        left_out=tuple(row.dataset for row in rows if row.dataset in left_out),
    )


def _dataset_row(part: pd.DataFrame, decisions: Mapping[Level, Decision], draws: int, seed: int) -> DatasetRow:
    frames, videos = scored_frames(part), video_scores(part)
    return DatasetRow(
        dataset=str(part["dataset"].iloc[0]),
        videos=len(videos),
        real_videos=int((videos["label"] == 0).sum()),
        fake_videos=int((videos["label"] == 1).sum()),
        frames=len(frames),
        coverage=len(videos) / len(part.drop_duplicates(VIDEO)),
        frame=_figures(frames, decisions["frame"]),
        video=_figures(videos, decisions["video"]),
        video_auc=mean_area([as_sample(videos)], draws, seed),
        methods=_method_rows(frames, videos, decisions, draws, seed),
    )


def _method_rows(
    frames: pd.DataFrame, videos: pd.DataFrame, decisions: Mapping[Level, Decision], draws: int, seed: int
) -> tuple[MethodRow, ...]:
    rows = []
    for method in videos.loc[videos["label"] == 1, "method"].unique():
        one_frames = frames[(frames["label"] == 0) | (frames["method"] == method)]
        one_videos = videos[(videos["label"] == 0) | (videos["method"] == method)]
        figures = _figures(one_frames, decisions["frame"]), _figures(one_videos, decisions["video"])
        estimate = mean_area([as_sample(one_videos)], draws, seed)
        rows.append(MethodRow(str(method), int((one_videos["label"] == 1).sum()), *figures, estimate))
    return tuple(rows)


def _figures(rows: pd.DataFrame, decision: Decision) -> Figures:
    labels, scores = rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64)
    return Figures(
        auc=area_under_curve(labels, scores),
        equal_error_rate=equal_error_rate(labels, scores),
        average_precision=average_precision(labels, scores),
        balanced_accuracy=balanced_accuracy(labels, scores, decision.threshold),
        calibration_error=expected_calibration_error(labels, decision.calibration.probability(scores)),
        score_calibration_error=expected_calibration_error(labels, scores),
        true_positive_rates={rate: true_positive_rate_at(labels, scores, rate) for rate in FALSE_POSITIVE_RATES},
    )


def as_sample(rows: pd.DataFrame) -> Sample:
    """The rows as one AUC's input."""
    return Sample(rows["label"].to_numpy(), rows["score"].to_numpy(dtype=np.float64), clusters(rows))


def clusters(rows: pd.DataFrame) -> np.ndarray:
    """What each row (n,) depends on: the person, or the video where the person is unknown."""
    person = rows["identity"].fillna("").astype(str)
    video = rows["dataset"].astype(str) + "/" + rows["method"].astype(str) + "/" + rows["video_id"].astype(str)
    return ("person " + person).where(person != "", "video " + video).to_numpy(dtype=object)


def mean_area(samples: Sequence[Sample], draws: int, seed: int) -> Estimate:
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


def macro_samples(scores: pd.DataFrame) -> list[Sample]:
    """The videos of each dataset that has both classes."""
    samples = [as_sample(part) for _, part in video_scores(scores).groupby("dataset", sort=False)]
    return [sample for sample in samples if both_classes(sample.labels)]


def macro_estimate(scores: pd.DataFrame, draws: int, seed: int) -> Estimate:
    """Mean video AUC over the datasets that have both classes, with its interval; NaN where none has."""
    return mean_area(macro_samples(scores), draws, seed)


def macro_video_auc(scores: pd.DataFrame) -> float:
    """Mean video AUC over the datasets that have both classes; NaN where none has."""
    areas = [area_under_curve(sample.labels, sample.scores) for sample in macro_samples(scores)]
    return float(np.mean(areas)) if areas else math.nan


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


def paired_delong(scores_a: pd.DataFrame, scores_b: pd.DataFrame, dataset: str) -> Difference | None:
    """Video AUC of model a minus model b on one dataset, by DeLong's test: a cross-check of `paired_bootstrap`.

    The test takes all videos for independent: None where a person has several of them, or a class has less than two.

    Raises:
        UserError: the tables differ in their scored frames or labels.
    """
    chosen = [scored_frames(scores[scores["dataset"] == dataset]) for scores in (scores_a, scores_b)]
    check_same_frames(*chosen)
    a, b = (video_means(frames).set_index(VIDEO) for frames in chosen)
    samples = as_sample(a.reset_index()), as_sample(b.loc[a.index].reset_index())
    alone = len(np.unique(samples[0].clusters.astype(str))) == len(a)
    few = min(np.sum(samples[0].labels == label) for label in (0, 1)) < 2
    return None if few or not alone else delong_difference(samples[0].labels, *(each.scores for each in samples))


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
