"""How a model's video AUC holds where the test frames are distorted: the robustness ladder and its area.

The distorted frames are of some videos of each dataset's method, the same ones under every kind and level, and they
are held against the same frames as they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd

from masm.data.distort import CLEAN
from masm.evaluation import FRAME, as_sample, check_scores, video_means, with_interval
from masm.metrics import Sample, area_under_curve, bootstrap_areas, both_classes
from masm.scorecard import Estimate

DROP_LEVEL = 3
RUNG = ["dataset", "distortion", "level"]


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
        for row in self.table.itertuples():
            if row.distortion != CLEAN:
                flat[f"{row.dataset}.robustness.{row.distortion}.{row.level}"] = float(row.video_auc)
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
    rungs = {key: as_sample(video_means(rows)) for key, rows in _paired_frames(scores).groupby(RUNG, sort=False)}
    areas = {key: area_under_curve(sample.labels, sample.scores) for key, sample in rungs.items()}
    rows = [(*key, len(rungs[key].labels), area) for key, area in areas.items()]
    table = pd.DataFrame(rows, columns=[*RUNG, "videos", "video_auc"])
    one_class = {key[0] for key, sample in rungs.items() if not both_classes(sample.labels)}
    judged = {key: sample for key, sample in rungs.items() if key[0] not in {*left_out, *one_class}}
    undefined = Estimate(math.nan, math.nan, math.nan)
    return Robustness(table, *_summary(judged, draws, seed)) if judged else Robustness(table, undefined, undefined, "")


def _paired_frames(scores: pd.DataFrame) -> pd.DataFrame:
    """The scored frames that were distorted, and the same ones as they are stored."""
    scored = scores[scores["outcome"] == "ok"]
    distorted = scored["distortion"] != CLEAN
    frames = pd.MultiIndex.from_frame(scored[FRAME])
    return scored[frames.isin(frames[distorted])]


def _summary(rungs: dict[tuple[str, str, int], Sample], draws: int, seed: int) -> tuple[Estimate, Estimate, str]:
    """Area, drop and worst kind; column 0 of the tables is as it was measured, the others are draws."""
    samples = list(rungs.values())
    measured = [area_under_curve(sample.labels, sample.scores) for sample in samples]
    drawn = bootstrap_areas(samples, draws, np.random.default_rng((seed,)))
    areas = pd.DataFrame(np.vstack([measured, drawn]).T, index=pd.MultiIndex.from_tuples(rungs, names=RUNG))
    by_rung = areas.groupby(level=["distortion", "level"]).mean(skipna=False)
    ladder = by_rung.drop(CLEAN, level="distortion")
    area = ladder.groupby(level="distortion").mean(skipna=False).mean(skipna=False)
    drops = by_rung.loc[CLEAN, 0] - ladder.xs(DROP_LEVEL, level="level")
    worst = str(drops[0].idxmax())
    area, drop = area.to_numpy(), drops.loc[worst].to_numpy()
    return with_interval(float(area[0]), area[1:]), with_interval(float(drop[0]), drop[1:]), worst
