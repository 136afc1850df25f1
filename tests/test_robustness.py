from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from masm.evaluation import paired_bootstrap
from masm.robustness import robustness
from tests.test_evaluation import make_scores

KINDS = {"blur": 0.1, "noise": 0.4, "resize": 0.2}


def with_distortions(scores: pd.DataFrame, people: int) -> pd.DataFrame:
    """Besides, the frames of the first people under every kind and level, their scores ever nearer to chance."""
    some = scores[scores["identity"].isin([f"person {index}" for index in range(people)])]
    rng = np.random.default_rng((8,))
    parts = [
        some.assign(distortion=kind, level=level, score=some["score"] + strength * level * rng.normal(size=len(some)))
        for kind, strength in KINDS.items()
        for level in range(1, 4 if kind == "resize" else 6)
    ]
    return pd.concat([scores, *parts], ignore_index=True)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return pd.concat([with_distortions(make_scores(name, seed=i), 12 + i) for i, name in enumerate("ab")])


def auc_of(rows: pd.DataFrame) -> float:
    videos = rows.groupby(["method", "video_id"]).agg(label=("label", "first"), score=("score", "mean"))
    return float(roc_auc_score(videos["label"], videos["score"]))


def test_ladder_area_and_drop_equal_those_by_hand(scores: pd.DataFrame) -> None:
    found = robustness(scores, draws=200, seed=0)
    by_hand = {}
    for (dataset, kind, level), rows in scores[scores["level"] > 0].groupby(["dataset", "distortion", "level"]):
        by_hand[dataset, kind, level] = auc_of(rows)
        assert found.metrics()[f"{dataset}.robustness.{kind}.{level}"] == pytest.approx(
            by_hand[dataset, kind, level], abs=1e-9
        )
    assert len(by_hand) == 2 * 13
    of_kinds = [np.mean([area for key, area in by_hand.items() if key[1] == kind]) for kind in KINDS]
    assert found.area.value == pytest.approx(np.mean(of_kinds), abs=1e-9)
    people = {"a": 12, "b": 13}
    clean = {
        name: auc_of(rows[rows["identity"].str.split().str[1].astype(int) < people[str(name)]])
        for name, rows in scores[scores["level"] == 0].groupby("dataset")
    }
    drops = {kind: np.mean([clean[name] - by_hand[name, kind, 3] for name in "ab"]) for kind in KINDS}
    assert found.worst == max(drops, key=lambda kind: drops[kind]) == "noise"
    assert found.drop.value == pytest.approx(drops["noise"], abs=1e-9)
    assert found.metrics()["macro.robustness_drop"] == found.drop.value
    stored = found.table[found.table["level"] == 0].set_index("dataset")
    assert stored["video_auc"].to_dict() == pytest.approx(clean)
    assert stored["videos"].to_dict() == {"a": 48, "b": 52}


def test_the_interval_of_the_drop_is_that_of_a_paired_comparison(scores: pd.DataFrame) -> None:
    """What is distorted is one model more, scored on the same frames."""
    one = scores[scores["dataset"] == "a"]
    found = robustness(one, draws=4000, seed=1)
    worst = one[(one["distortion"] == found.worst) & (one["level"] == 3)].assign(distortion="none", level=0)
    stored = one[(one["level"] == 0) & one["identity"].isin(worst["identity"])]
    expected = paired_bootstrap(stored, worst, ["a"], draws=4000, seed=2)
    assert found.drop.value == pytest.approx(expected.value)
    assert (found.drop.low, found.drop.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found.area.low < found.area.value < found.area.high


def test_datasets_that_cannot_decide_are_shown_and_left_out(scores: pd.DataFrame) -> None:
    alone = robustness(scores[scores["dataset"] == "a"], draws=100, seed=0)
    without = robustness(scores, draws=100, seed=0, left_out={"b"})
    assert (without.area, without.drop, without.worst) == (alone.area, alone.drop, alone.worst)
    assert set(without.table["dataset"]) == {"a", "b"}
    reals = scores[(scores["dataset"] != "b") | (scores["label"] == 0)]
    assert robustness(reals, draws=100, seed=0).area == alone.area
    assert not any(key.startswith("b.") for key in robustness(reals, draws=100, seed=0).metrics())


def test_without_distorted_frames_there_is_no_ladder() -> None:
    found = robustness(make_scores(), draws=100, seed=0)
    assert found.table.empty
    assert math.isnan(found.area.value)
    assert found.metrics() == {}
