from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from masm.comparison import compare_candidates, markdown_table
from masm.errors import UserError
from masm.evaluation import video_scores
from tests.test_evaluation import make_scores

DATASETS = ("a", "b")


def make_run(quality: float, seed: int) -> pd.DataFrame:
    """Scores of a run: the same people whatever the seed, a little other scores."""
    scores = pd.concat([make_scores(name, quality=quality, seed=i) for i, name in enumerate(DATASETS)])
    noise = np.random.default_rng((seed,)).normal(0, 0.15, len(scores))
    return scores.assign(score=(scores["score"] + noise).clip(0, 1)).reset_index(drop=True)


@pytest.fixture(scope="module")
def runs() -> dict[str, list[pd.DataFrame]]:
    return {name: [make_run(quality, seed) for seed in range(4)] for name, quality in (("good", 1.0), ("poor", 0.4))}


def video_auc(scores: pd.DataFrame, dataset: str) -> float:
    videos = video_scores(scores[scores["dataset"] == dataset])
    return float(roc_auc_score(videos["label"], videos["score"]))


def test_figures_are_means_over_seeds_of_scikit_learns(runs: dict[str, list[pd.DataFrame]]) -> None:
    standings = compare_candidates(runs, {}, draws=400, seed=1)
    means = {}
    for method, of_method in runs.items():
        areas = np.array([[video_auc(scores, name) for name in DATASETS] for scores in of_method])
        standing = standings[method]
        for index, name in enumerate(DATASETS):
            assert standing.datasets[name].value == pytest.approx(areas[:, index].mean())
            assert standing.datasets[name].low < standing.datasets[name].value < standing.datasets[name].high
        assert standing.mean.value == pytest.approx(areas.mean())
        assert standing.deviation == pytest.approx(np.std(areas.mean(axis=1), ddof=1))
        means[method] = areas.mean()
    assert standings["good"].lead is None
    lead = standings["poor"].lead
    assert lead is not None
    assert lead.value == pytest.approx(means["poor"] - means["good"])
    assert lead.low < lead.value < lead.high < 0


def test_interval_is_that_of_drawing_people_and_seeds_by_hand(runs: dict[str, list[pd.DataFrame]]) -> None:
    rng = np.random.default_rng((9,))
    videos = [video_scores(scores) for scores in runs["poor"]]
    people = videos[0]["identity"].unique()
    rows_of = [
        {person: rows.to_numpy() for person, rows in table.groupby("identity").groups.items()} for table in videos
    ]
    means = []
    for _ in range(200):
        drawn = rng.choice(people, len(people))
        areas = []
        for seed in rng.integers(len(videos), size=len(videos)):
            table = videos[seed].loc[np.concatenate([rows_of[seed][person] for person in drawn])]
            areas.append([roc_auc_score(part["label"], part["score"]) for _, part in table.groupby("dataset")])
        means.append(np.mean(areas))
    low, high = np.percentile(means, [2.5, 97.5])
    found = compare_candidates(runs, {}, draws=4000, seed=1)["poor"].mean
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.25 * (high - low))


def test_a_method_against_itself_differs_by_nothing(runs: dict[str, list[pd.DataFrame]]) -> None:
    lead = compare_candidates({"one": runs["good"], "same": runs["good"]}, {}, draws=100, seed=1)["same"].lead
    assert lead is not None
    assert (lead.value, lead.low, lead.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_runs_of_other_frames_are_refused(runs: dict[str, list[pd.DataFrame]]) -> None:
    fewer = [scores.iloc[1:] for scores in runs["poor"]]
    with pytest.raises(UserError, match="differ in 1 frames or labels"):
        compare_candidates({"good": runs["good"], "poor": fewer}, {}, draws=100, seed=1)


def test_one_class_alone_is_refused(runs: dict[str, list[pd.DataFrame]]) -> None:
    reals = [scores[scores["label"] == 0] for scores in runs["good"]]
    with pytest.raises(UserError, match="no test dataset has both"):
        compare_candidates({"good": reals}, {}, draws=100, seed=1)


def test_the_table_holds_every_figure(runs: dict[str, list[pd.DataFrame]]) -> None:
    standings = compare_candidates(runs, {}, draws=100, seed=1)
    header, _, good, poor = markdown_table(standings, {"good": 1234, "poor": 5}).splitlines()
    assert header == "| method | trainable | a | b | mean | sd over seeds | minus good |"
    assert good.startswith(f"| good | 1,234 | {standings['good'].datasets['a'].value:.3f} [")
    assert poor.endswith(f"{standings['poor'].lead.value:+.3f} {standings['poor'].lead.interval()} |")
    assert {line.count("|") for line in (header, good, poor)} == {8}


def test_a_gain_is_over_the_candidates_own_baseline(runs: dict[str, list[pd.DataFrame]]) -> None:
    three = {"best": [make_run(2.0, seed) for seed in range(4)], **runs}
    standings = compare_candidates(three, {"good": "poor"}, draws=400, seed=1)
    gain = standings["good"].gain
    assert gain is not None
    assert gain.value == pytest.approx(standings["good"].mean.value - standings["poor"].mean.value)
    assert 0 < gain.low < gain.value < gain.high
    assert standings["best"].gain is standings["poor"].gain is None
    lead = compare_candidates({"poor": runs["poor"], "good": runs["good"]}, {}, draws=400, seed=1)["good"].lead
    assert lead is not None
    assert (gain.low, gain.high) == pytest.approx((lead.low, lead.high), abs=0.02)
    header, _, best, good, poor = markdown_table(standings, {"best": 1, "good": 2, "poor": 3}).splitlines()
    assert header.endswith("| sd over seeds | gain | minus best |")
    assert f"| {gain.value:+.3f} {gain.interval()} |" in good
    assert best.endswith(" |  |  |")
    assert {line.count("|") for line in (header, best, good, poor)} == {9}
