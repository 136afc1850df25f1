"""Several methods, each with several seeds, judged on the same test datasets: means, intervals and a table.

An interval is a 95 % percentile interval of a bootstrap that draws persons and seeds at once, the same ones for
every method: it covers both who happened to be tested and how training happened to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from masm.errors import UserError
from masm.evaluation import as_sample, check_same_frames, scored_frames, video_scores, with_interval
from masm.metrics import area_under_curve, bootstrap_areas, both_classes
from masm.scorecard import Estimate, number


@dataclass(frozen=True)
class Standing:
    """What one method reached: mean video AUC over its seeds.

    Attributes:
        datasets: by test dataset.
        mean: over the test datasets.
        deviation: standard deviation of that mean over the seeds.
        behind: how much higher the first method's mean is, paired; None for the first method itself.
    """

    datasets: dict[str, Estimate]
    mean: Estimate
    deviation: float
    behind: Estimate | None


def compare_methods(runs: Mapping[str, Sequence[pd.DataFrame]], draws: int, seed: int) -> dict[str, Standing]:
    """Judge methods by the scores of their runs.

    Args:
        runs: for each method the Scores (see `masm.evaluation`) of its seeds, the same seeds in the same order; the
            first method is what the others are held against.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: runs were not scored on the same frames, or no dataset has both classes.
    """
    tables = [[video_scores(scores) for scores in of_method] for of_method in runs.values()]
    first = next(iter(runs.values()))[0]
    for of_method in runs.values():
        for scores in of_method:
            check_same_frames(scored_frames(first), scored_frames(scores))
    labels = tables[0][0].groupby("dataset", sort=False)["label"]
    datasets = [str(name) for name, values in labels if both_classes(values.to_numpy())]
    if not datasets:
        raise UserError("no test dataset has both reals and fakes: there is nothing to compare on.")
    samples = [
        as_sample(table[table["dataset"] == name]) for of_method in tables for table in of_method for name in datasets
    ]
    shape = (len(tables), len(tables[0]), len(datasets))
    rng = np.random.default_rng((seed,))
    areas = np.array([area_under_curve(sample.labels, sample.scores) for sample in samples]).reshape(shape)
    drawn = bootstrap_areas(samples, draws, rng).reshape(draws, *shape)
    seeds = rng.integers(shape[1], size=(draws, 1, shape[1], 1))
    drawn = np.take_along_axis(drawn, seeds, axis=2).mean(axis=2)
    return {
        method: _standing(datasets, areas, drawn, number_of_method) for number_of_method, method in enumerate(runs)
    }


def _standing(datasets: list[str], areas: np.ndarray, drawn: np.ndarray, method: int) -> Standing:
    """From areas (methods, seeds, datasets) and drawn means over the seeds (draws, methods, datasets)."""
    own, means, first = areas[method], drawn[:, method].mean(axis=1), drawn[:, 0].mean(axis=1)
    behind = with_interval(float(areas[0].mean() - own.mean()), first - means) if method else None
    return Standing(
        datasets={
            name: with_interval(float(own[:, index].mean()), drawn[:, method, index])
            for index, name in enumerate(datasets)
        },
        mean=with_interval(float(own.mean()), means),
        deviation=float(own.mean(axis=1).std(ddof=1)),
        behind=behind,
    )


def markdown_table(standings: Mapping[str, Standing], parameters: Mapping[str, int]) -> str:
    """The standings as a Markdown table, with each method's number of trainable parameters."""
    first, datasets = next(iter(standings)), list(next(iter(standings.values())).datasets)
    header = ["method", "trainable", *datasets, "mean", "sd over seeds", f"{first} minus it"]
    rows = [
        [
            method,
            f"{parameters[method]:,}",
            *(_cell(standing.datasets[name]) for name in datasets),
            f"**{number(standing.mean.value)}** {standing.mean.interval()}",
            number(standing.deviation),
            f"{standing.behind.value:+.3f} {standing.behind.interval()}" if standing.behind else "",
        ]
        for method, standing in standings.items()
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {estimate.interval()}"
