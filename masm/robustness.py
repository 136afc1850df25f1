"""How a model's video AUC holds where the test frames are distorted: the robustness ladder and its area.

The distorted frames are of some videos of each dataset's method, the same ones under every kind and level, and they
are held against the same frames as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from masm.data.distort import CLEAN
from masm.evaluation import FRAME, as_sample, check_scores, video_means, with_interval
from masm.metrics import Sample, area_under_curve, bootstrap_areas, both_classes
from masm.scorecard import Estimate

DROP_LEVEL = 3
RUNG = ["dataset", "distortion", "level"]
Rung = tuple[str, str, int]


@dataclass(frozen=True)
class Robustness:
    """Video AUC under distortions.

    Attributes:
        table: rows (dataset, distortion, level, videos, video_auc); level 0 of distortion "none" are the same frames
            as they are stored.
        area: mean of the video AUC over datasets, then over the levels of a kind (from 1 on), then over kinds: each
            kind weighs the same. 0.5 is chance.
        drop: how much lower the mean video AUC over the datasets is at level 3 of `worst` than of the frames as they
            are stored.
        worst: the kind whose level 3 takes the most; its interval does not know that it was chosen for that.
    """

    table: pd.DataFrame
    area: Estimate
    drop: Estimate
    worst: str

    def metrics(self) -> dict[str, float]:
        """Flat figures for metrics.json; undefined ones are left out."""
        flat = {"macro.robustness_area": self.area.value, "macro.robustness_drop": self.drop.value}
        for row in self.table[self.table["distortion"] != CLEAN].to_dict("records"):
            flat[f"{row['dataset']}.robustness.{row['distortion']}.{row['level']}"] = row["video_auc"]
        return {name: value for name, value in flat.items() if math.isfinite(value)}


def robustness(scores: pd.DataFrame, draws: int, seed: int, left_out: Collection[str] = ()) -> Robustness:
    """The ladder of one model, with 95 % intervals over persons; without rows where no frame was distorted.

    Args:
        scores: Scores, the distorted frames among them.
        draws: bootstrap draws.
        seed: of the bootstrap.
        left_out: datasets that the area and the drop do not see, as in `masm.evaluation.evaluate`.
    """
    check_scores(scores)
    rungs = _rungs(_paired_frames(scores))
    rows = [(*rung, len(each.labels), area_under_curve(each.labels, each.scores)) for rung, each in rungs.items()]
    table = pd.DataFrame(rows, columns=[*RUNG, "videos", "video_auc"])
    one_class = {rung[0] for rung, sample in rungs.items() if not both_classes(sample.labels)}
    judged = {rung: sample for rung, sample in rungs.items() if rung[0] not in {*left_out, *one_class}}
    undefined = Estimate(math.nan, math.nan, math.nan)
    return Robustness(table, *_summary(judged, draws, seed)) if judged else Robustness(table, undefined, undefined, "")


def _paired_frames(scores: pd.DataFrame) -> pd.DataFrame:
    """The scored frames that were distorted, and the same ones as they are stored."""
    scored = scores[scores["outcome"] == "ok"]
    distorted = scored["distortion"] != CLEAN
    frames = pd.MultiIndex.from_frame(scored[FRAME])
    return scored[frames.isin(frames[distorted])]


def _rungs(frames: pd.DataFrame) -> dict[Rung, Sample]:
    """The videos of each dataset under each kind and level."""
    rungs = {}
    for key, rows in frames.groupby(RUNG, sort=False):
        dataset, kind, level = map(str, key)
        rungs[dataset, kind, int(level)] = as_sample(video_means(rows))
    return rungs


def _summary(rungs: Mapping[Rung, Sample], draws: int, seed: int) -> tuple[Estimate, Estimate, str]:
    """Area, drop and worst kind."""
    samples = list(rungs.values())
    measured = [area_under_curve(sample.labels, sample.scores) for sample in samples]
    drawn = bootstrap_areas(samples, draws, np.random.default_rng((seed,)))
    areas = dict(zip(rungs, np.vstack([measured, drawn]).T, strict=True))  # each as it was measured, then the draws

    def mean(kind: str, only: int | None = None) -> np.ndarray:
        rows = [area for (_, of, level), area in areas.items() if of == kind and only in (None, level)]
        return np.mean(rows, axis=0)

    kinds = [kind for kind in dict.fromkeys(kind for _, kind, _ in rungs) if kind != CLEAN]
    area = np.mean([mean(kind) for kind in kinds], axis=0)
    drops = {kind: mean(CLEAN) - mean(kind, DROP_LEVEL) for kind in kinds}
    worst = max(kinds, key=lambda kind: drops[kind][0])
    drop = drops[worst]
    return with_interval(float(area[0]), area[1:]), with_interval(float(drop[0]), drop[1:]), worst
