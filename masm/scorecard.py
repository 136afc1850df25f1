"""The figures of one model on several datasets: what metrics.json, the printed table and the report show."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
class MethodRow:
    """One forgery method of a dataset, against all reals of the dataset."""

    method: str
    videos: int
    frame_auc: float
    video_auc: Estimate


@dataclass(frozen=True)
class DatasetRow:
    """One dataset. Rates are of videos; `coverage` is the share of its videos that have a score.

    `calibration_error` is of the scores as they are given, before any calibration.
    """

    dataset: str
    videos: int
    real_videos: int
    fake_videos: int
    frames: int
    coverage: float
    frame_auc: float
    video_auc: Estimate
    equal_error_rate: float
    average_precision: float
    balanced_accuracy: float
    calibration_error: float
    true_positive_rates: dict[float, float]  # by false positive rate
    methods: tuple[MethodRow, ...]


@dataclass(frozen=True)
class Scorecard:
    """What one model scored; `frame_auc` and `video_auc` are means over the datasets where AUC is defined."""

    datasets: tuple[DatasetRow, ...]
    frame_auc: float
    video_auc: Estimate
    threshold: float

    def metrics(self) -> dict[str, float]:
        """Flat "dataset.metric" figures for `dvc metrics` and MLflow; undefined ones are left out.

        A dataset of several forgery methods has "dataset.method.video_auc" figures besides.
        """
        flat = {"macro.frame_auc": self.frame_auc, **_flat("macro.video_auc", self.video_auc)}
        for row in self.datasets:
            flat |= {f"{row.dataset}.{name}": value for name, value in _dataset_metrics(row).items()}
        return {name: value for name, value in flat.items() if math.isfinite(value)}

    def table(self) -> list[dict[str, str]]:
        """One row per dataset and one for the macro mean, ready to print."""
        rows = [_table_row(row.dataset, str(row.videos), row.frame_auc, row.video_auc) for row in self.datasets]
        return [*rows, _table_row("macro mean", "", self.frame_auc, self.video_auc)]


def number(value: float) -> str:
    """Three decimals, or "undefined"."""
    return f"{value:.3f}" if math.isfinite(value) else "undefined"


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


def _dataset_metrics(row: DatasetRow) -> dict[str, float]:
    flat = {
        "videos": row.videos,
        "frames": row.frames,
        "coverage": row.coverage,
        "frame_auc": row.frame_auc,
        **_flat("video_auc", row.video_auc),
        "video_equal_error_rate": row.equal_error_rate,
        "video_average_precision": row.average_precision,
        "video_balanced_accuracy": row.balanced_accuracy,
        "video_calibration_error": row.calibration_error,
    }
    for limit, rate in row.true_positive_rates.items():
        flat[f"video_tpr_at_fpr_{limit:g}"] = rate
    for method in row.methods if len(row.methods) > 1 else ():
        flat |= _flat(f"{method.method}.video_auc", method.video_auc)
    return flat
