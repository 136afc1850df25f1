"""The figures of one model on several datasets: what metrics.json, the printed table and the report show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from masm.decisions import Level

ADAPTED = "adapted"
"""The model that is judged, as scores.parquet and metrics.json call it; the others there are held against it."""
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; NaN is undefined."""

    value: float
    low: float
    high: float

    def interval(self) -> str:
        """The interval in words and brackets, three decimals."""
        return f"[{number(self.low)}, {number(self.high)}]" if math.isfinite(self.low) else "undefined"


@dataclass(frozen=True)
class Figures:
    """What the scores of one level say, frames or videos; NaN is undefined.

    `balanced_accuracy` is at the level's threshold, `calibration_error` (ECE) that of the calibrated probabilities,
    and `score_calibration_error` that of the scores as they are.
    """

    auc: float
    equal_error_rate: float
    average_precision: float
    balanced_accuracy: float
    calibration_error: float
    score_calibration_error: float
    true_positive_rates: dict[float, float]  # by false positive rate

    def metrics(self, level: Level) -> dict[str, float]:
        """Flat figures, their names beginning with the level."""
        flat = {name: getattr(self, name) for name in _PLAIN_FIGURES}
        flat |= {f"tpr_at_fpr_{rate:g}": value for rate, value in self.true_positive_rates.items()}
        return {f"{level}_{name}": value for name, value in flat.items()}


_PLAIN_FIGURES = [field.name for field in fields(Figures) if field.name != "true_positive_rates"]


def mean_figures(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure; NaN where there is nothing to take it of."""

    def mean(values: Iterable[float]) -> float:
        listed = list(values)
        return math.fsum(listed) / len(listed) if listed else math.nan

    return Figures(
        **{name: mean(getattr(each, name) for each in figures) for name in _PLAIN_FIGURES},
        true_positive_rates={
            rate: mean(each.true_positive_rates[rate] for each in figures) for rate in FALSE_POSITIVE_RATES
        },
    )


@dataclass(frozen=True)
class MethodRow:
    """One forgery method of a dataset, against all reals of the dataset."""

    method: str
    videos: int
    frame: Figures
    video: Figures
    video_auc: Estimate


@dataclass(frozen=True)
class DatasetRow:
    """One dataset; `coverage` is the share of its videos that have a score."""

    dataset: str
    videos: int
    real_videos: int
    fake_videos: int
    frames: int
    coverage: float
    frame: Figures
    video: Figures
    video_auc: Estimate
    methods: tuple[MethodRow, ...]


@dataclass(frozen=True)
class Scorecard:
    """What one model scored; `frame`, `video` and `video_auc` are macro means.

    A macro mean is over the datasets of both classes but those of `left_out`, whose reals and fakes come from
    different sources: they are judged and shown, but their figures measure the sources.
    """

    datasets: tuple[DatasetRow, ...]
    frame: Figures
    video: Figures
    video_auc: Estimate
    thresholds: dict[Level, float]
    left_out: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """Flat "dataset.metric" figures for `dvc metrics` and MLflow; undefined ones are left out.

        A dataset of several forgery methods has "dataset.method.metric" figures besides.
        """
        flat = {f"macro.{name}": value for name, value in _levels(self).items()}
        for row in self.datasets:
            flat |= {f"{row.dataset}.{name}": value for name, value in _dataset_metrics(row).items()}
        return {name: value for name, value in flat.items() if math.isfinite(value)}

    def table(self) -> list[dict[str, str]]:
        """One row per dataset and one for the macro mean, ready to print."""
        rows = [_table_row(row.dataset, str(row.videos), row.frame.auc, row.video_auc) for row in self.datasets]
        return [*rows, _table_row("macro mean", "", self.frame.auc, self.video_auc)]


def number(value: float) -> str:
    """Three decimals, or "undefined"."""
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


def signed(value: float) -> str:
    """Three decimals with the sign, or "undefined"."""
    return f"{value:+.3f}" if math.isfinite(value) else "undefined"


def _table_row(name: str, videos: str, frame_auc: float, video_auc: Estimate) -> dict[str, str]:
    return {
        "dataset": name,
        "videos": videos,
        "frame AUC": number(frame_auc),
        "video AUC": number(video_auc.value),
        "95 % interval": video_auc.interval(),
    }


def _flat(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _levels(row: Scorecard | DatasetRow | MethodRow) -> dict[str, float]:
    return row.frame.metrics("frame") | row.video.metrics("video") | _flat("video_auc", row.video_auc)


def _dataset_metrics(row: DatasetRow) -> dict[str, float]:
    flat = {"videos": row.videos, "frames": row.frames, "coverage": row.coverage, **_levels(row)}
    for method in row.methods if len(row.methods) > 1 else ():
        flat |= {f"{method.method}.{name}": value for name, value in _levels(method).items()}
    return flat
