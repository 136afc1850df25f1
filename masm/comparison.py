"""Several candidates, each with several seeds, judged on the same test datasets: means, intervals and a table.

An interval is a 95 % percentile interval of a bootstrap that draws persons and seeds at once, the same ones for
every candidate: it covers both who happened to be tested and how training happened to go.
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
    """What one candidate reached: mean video AUC over its seeds.

    Attributes:
        datasets: by test dataset.
        mean: over the test datasets.
        deviation: standard deviation of that mean over the seeds.
        lead: how much higher its mean is than the first candidate's, paired; None for the first itself.
        gain: how much higher its mean is than its own baseline's, paired; None where it has none.
    """

    datasets: dict[str, Estimate]
    mean: Estimate
    deviation: float
    lead: Estimate | None
    gain: Estimate | None


def compare_candidates(
    runs: Mapping[str, Sequence[pd.DataFrame]], baselines: Mapping[str, str], draws: int, seed: int
) -> dict[str, Standing]:
    """Judge candidates by the scores of their runs.

    Args:
        runs: for each candidate the Scores (see `masm.evaluation`) of its seeds, the same seeds in the same order;
            the first candidate is what the others are held against.
        baselines: for some candidates the one whose gain over it is asked for, besides.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: runs were not scored on the same frames, or no dataset has both classes.
    """
    tables = [[video_scores(scores) for scores in of_candidate] for of_candidate in runs.values()]
    first = next(iter(runs.values()))[0]
    for of_candidate in runs.values():
        for scores in of_candidate:
            check_same_frames(scored_frames(first), scored_frames(scores))
    labels = tables[0][0].groupby("dataset", sort=False)["label"]
    datasets = [str(name) for name, values in labels if both_classes(values.to_numpy())]
    if not datasets:
        raise UserError("no test dataset has both reals and fakes: there is nothing to compare on.")
    samples = [
        as_sample(table[table["dataset"] == name])
        for of_candidate in tables
        for table in of_candidate
        for name in datasets
    ]
    shape = (len(tables), len(tables[0]), len(datasets))
    rng = np.random.default_rng((seed,))
    areas = np.array([area_under_curve(sample.labels, sample.scores) for sample in samples]).reshape(shape)
    drawn = bootstrap_areas(samples, draws, rng).reshape(draws, *shape)
    seeds = rng.integers(shape[1], size=(draws, 1, shape[1], 1))
    drawn = np.take_along_axis(drawn, seeds, axis=2).mean(axis=2)
    numbers = {name: number for number, name in enumerate(runs)}
    return {
        name: _standing(datasets, areas, drawn, number, numbers[baselines[name]] if name in baselines else None)
        for name, number in numbers.items()
    }


def _standing(
    datasets: list[str], areas: np.ndarray, drawn: np.ndarray, candidate: int, baseline: int | None
) -> Standing:
    """From areas (candidates, seeds, datasets) and drawn means over the seeds (draws, candidates, datasets)."""
    values, means = areas.mean(axis=(1, 2)), drawn.mean(axis=2)

    def more(one: int, other: int) -> Estimate:
        return with_interval(float(values[one] - values[other]), means[:, one] - means[:, other])

    return Standing(
        datasets={
            name: with_interval(float(areas[candidate, :, index].mean()), drawn[:, candidate, index])
            for index, name in enumerate(datasets)
        },
        mean=with_interval(float(values[candidate]), means[:, candidate]),
        deviation=float(areas[candidate].mean(axis=1).std(ddof=1)),
        lead=more(candidate, 0) if candidate else None,
        gain=None if baseline is None else more(candidate, baseline),
    )


def markdown_table(standings: Mapping[str, Standing], parameters: Mapping[str, int]) -> str:
    """The standings as a Markdown table, with each candidate's number of trainable parameters; a column of gains
    where one has a baseline."""
    first, datasets = next(iter(standings)), list(next(iter(standings.values())).datasets)
    gains = ["gain"] if any(standing.gain for standing in standings.values()) else []
    header = ["method", "trainable", *datasets, "mean", "sd over seeds", *gains, f"minus {first}"]
    rows = [
        [
            name,
            f"{parameters[name]:,}",
            *(_cell(standing.datasets[dataset]) for dataset in datasets),
            f"**{number(standing.mean.value)}** {standing.mean.interval()}",
            number(standing.deviation),
            *(_difference(standing.gain) for _ in gains),
            _difference(standing.lead),
        ]
        for name, standing in standings.items()
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _difference(estimate: Estimate | None) -> str:
    return f"{estimate.value:+.3f} {estimate.interval()}" if estimate else ""


def _cell(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {estimate.interval()}"
