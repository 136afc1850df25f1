from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from masm.evaluation import evaluate, video_scores
from masm.slices import MOST_VALUES, slice_table
from tests.test_evaluation import DECISIONS, make_scores


def with_column(values: dict[str, object] | None = None, **options: object) -> pd.DataFrame:
    """Scores with a column `fact`: the values by video_id, or the video's number."""
    scores = make_scores(**options)  # type: ignore[arg-type]
    numbers = scores["video_id"].str.split("_").str[0].astype(int)
    return scores.assign(fact=numbers if values is None else numbers.map(lambda n: values[n % len(values)]))  # type: ignore[index]


def test_values_are_slices_of_their_own() -> None:
    scores = with_column({0: "c23", 1: "c40"}, people=30)
    table = slice_table(scores, "fact", draws=200, seed=0)
    assert list(table["value"]) == ["c23", "c40"]
    for row in table.itertuples():
        part = scores[scores["fact"] == row.value]
        videos = video_scores(part)
        assert row.video_auc == pytest.approx(roc_auc_score(videos["label"], videos["score"]), abs=1e-9)
        assert (row.videos, row.real_videos) == (len(videos), (videos["label"] == 0).sum())
        estimate = evaluate(part, DECISIONS, draws=200).datasets[0].video_auc
        assert (row.low, row.high) == (estimate.low, estimate.high)


def test_many_numbers_are_quarters_of_the_videos() -> None:
    scores = with_column(people=40, photographs=1)
    scores["fact"] = scores["fact"] * 2.5 + scores["frame_index"] - 1  # a video's is the mean over its frames
    table = slice_table(scores, "fact", draws=100, seed=0)
    assert table["videos"].tolist() == [20] * 4
    assert table["real_videos"].tolist() == [10] * 4
    assert [value.split(":")[0] for value in table["value"]] == ["1", "2", "3", "4"]
    assert table["value"].iloc[0] == "1: 0 to 24.38"
    first = video_scores(scores[scores["video_id"].str.split("_").str[0].astype(int) < 10])
    assert table["video_auc"].iloc[0] == pytest.approx(roc_auc_score(first["label"], first["score"]), abs=1e-9)
    few = slice_table(with_column({0: 1.0, 1: 2.0, 2: np.nan}, people=30), "fact", draws=100, seed=0)
    assert sorted(few["value"]) == ["1.0", "2.0", "unknown"]
    scores.loc[scores["video_id"] == "3_0", "fact"] = np.nan
    lost = slice_table(scores, "fact", draws=100, seed=0)
    assert lost[lost["value"] == "unknown"]["videos"].tolist() == [2]


def test_a_column_that_tells_of_the_forgery_is_held_against_all_reals() -> None:
    scores = make_scores(methods=("swap", "reenact"), people=20)
    table = slice_table(scores.assign(fact=scores["method"]), "fact", draws=200, seed=0)
    rows = {row.method: row for row in evaluate(scores, DECISIONS, draws=200).datasets[0].methods}
    assert set(table["value"]) == {"swap", "reenact"}
    for row in table.itertuples():
        assert row.video_auc == rows[row.value].video.auc
        assert row.real_videos == 40


def test_one_value_is_no_slice_and_one_class_is_undefined() -> None:
    assert slice_table(with_column({0: "c23"}), "fact", draws=100, seed=0).empty
    scores = with_column({0: "a", 1: "b"}, people=20)
    scores = scores[(scores["fact"] == "a") | (scores["label"] == 0)]
    table = slice_table(scores, "fact", draws=100, seed=0).set_index("value")
    assert math.isnan(table.loc["b", "video_auc"])
    assert math.isfinite(table.loc["a", "video_auc"])


def test_rare_values_are_together_and_missing_ones_unknown() -> None:
    scores = with_column({n: None if n == 29 else f"clip {n:02}" for n in range(30)}, people=30)
    table = slice_table(scores, "fact", draws=100, seed=0).set_index("value")
    of_one = len(video_scores(scores)) // 30  # videos
    kept = [value for value in table.index if value.startswith("clip")]
    assert len(kept) == len(set(kept)) == MOST_VALUES
    assert set(table.index) == {*kept, "unknown", "others"}
    assert table.loc["unknown", "videos"] == of_one
    assert table.loc["others", "videos"] == (29 - MOST_VALUES) * of_one


def test_datasets_have_slices_of_their_own() -> None:
    a, b = with_column({0: "x", 1: "y"}, dataset="a"), with_column({0: "x"}, dataset="b", seed=1)
    assert set(slice_table(pd.concat([a, b]), "fact", draws=100, seed=0)["dataset"]) == {"a"}
