"""Video AUC on parts of a dataset: by the values of a column of the face table, or by quarters of a numeric one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from masm.evaluation import VIDEO, as_sample, mean_area, scored_frames, video_means

MOST_VALUES = 12  # the rarer ones are one slice together
QUARTERS = 4
SLICE_COLUMNS = ["dataset", "column", "value", "videos", "real_videos", "video_auc", "low", "high"]


def slice_table(scores: pd.DataFrame, column: str, draws: int, seed: int) -> pd.DataFrame:
    """The slices of each dataset by one column; a dataset with a single value has none.

    A video has its frames' value, their mean where the column is numeric; more than four numbers are quarters of the
    dataset's videos. Where reals and fakes of a dataset share no value, the column tells of the forgery (as `family`
    does), and the fakes of each value are held against all reals.

    Args:
        scores: Scores with the column.
        column: its name.
        draws: bootstrap draws per interval.
        seed: of the bootstrap.

    Returns:
        Rows (dataset, column, value, videos, real_videos, video_auc, low, high); NaN where a slice has one class.
    """
    frames = scored_frames(scores)
    values = frames.groupby(VIDEO, sort=False, dropna=False)[column]
    facts = values.mean() if pd.api.types.is_numeric_dtype(frames[column]) else values.first()
    rows = []
    for dataset, videos in video_means(frames).assign(fact=facts.to_numpy()).groupby("dataset", sort=False):
        for value, members in _slices(videos.assign(value=_named(videos["fact"]))):
            estimate = mean_area([as_sample(members)], draws, seed)
            reals = int((members["label"] == 0).sum())
            rows.append((dataset, column, value, len(members), reals, estimate.value, estimate.low, estimate.high))
    return pd.DataFrame(rows, columns=SLICE_COLUMNS)


def _named(facts: pd.Series) -> pd.Series:
    """The name of each video's slice within one dataset, as a category."""
    if pd.api.types.is_numeric_dtype(facts) and facts.nunique() > QUARTERS:
        edges = np.unique(np.quantile(facts.dropna(), np.linspace(0, 1, QUARTERS + 1)))
        quarters = pd.cut(facts, edges.tolist(), include_lowest=True)
        names = [f"{i}: {low:.4g} to {high:.4g}" for i, (low, high) in enumerate(pairwise(edges), start=1)]
        return quarters.cat.rename_categories(names).cat.add_categories("unknown").fillna("unknown")
    known = facts.notna() & (facts != "")
    named = facts.astype(object).where(known, "unknown").astype(str)
    common = named[known].value_counts().index[:MOST_VALUES]
    names = list(dict.fromkeys([*common, "unknown", "others"]))  # a table may have such values of its own
    return named.where(named.isin(names), "others").astype(pd.CategoricalDtype(names))


def _slices(videos: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The members of each slice; none where there is one value alone."""
    reals, fakes = (videos[videos["label"] == label] for label in (0, 1))
    if len(reals) and not set(reals["value"]) & set(fakes["value"]):
        parts = [(str(name), pd.concat([reals, part])) for name, part in fakes.groupby("value", observed=True)]
    else:
        parts = [(str(name), part) for name, part in videos.groupby("value", observed=True)]
    return parts if len(parts) > 1 else []
