from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from masm.decisions import Decision, Isotonic, Level, Temperature
from masm.delong import delong_difference
from masm.errors import UserError
from masm.evaluation import (
    evaluate,
    macro_video_auc,
    paired_bootstrap,
    paired_delong,
    video_scores,
)

DECISIONS: dict[Level, Decision] = {
    "frame": Decision(0.6, Temperature(0.8, -0.2)),
    "video": Decision(0.55, Isotonic((0.2, 0.5, 0.8), (0.1, 0.4, 0.9))),
}


def make_scores(
    dataset: str = "upsample",
    methods: tuple[str, ...] = ("upsample",),
    people: int = 20,
    photographs: int = 2,
    frames: int = 3,
    quality: float = 1.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of `people` persons: each photograph is a real video and one fake video per method."""
    rng = np.random.default_rng((seed, people, photographs))
    videos = [
        {
            "dataset": dataset,
            "method": method,
            "video_id": f"{person}_{photograph}",
            "identity": f"person {person}",
            "label": int(method != "real"),
            "logit": shared + rng.normal(0, 0.7) + quality * (method != "real"),
        }
        for person, shared in enumerate(rng.normal(0, 0.5, people))
        for photograph in range(photographs)
        for method in ("real", *methods)
    ]
    table = pd.DataFrame(videos).merge(pd.DataFrame({"frame_index": range(frames)}), how="cross")
    logits = table.pop("logit") + rng.normal(0, 0.3, len(table))
    return table.assign(score=1 / (1 + np.exp(-logits)), distortion="none", level=0, outcome="ok")


def test_video_score_is_the_mean_of_the_scored_frames() -> None:
    scores = make_scores(people=2, photographs=1)
    scores.loc[0, ["score", "outcome"]] = [np.nan, "no face"]
    videos = video_scores(scores)
    assert len(videos) == 4
    first = videos[(videos["video_id"] == "0_0") & (videos["method"] == "real")].iloc[0]
    assert first["frames"] == 2
    assert first["score"] == pytest.approx(scores.loc[[1, 2], "score"].mean())
    assert first["identity"] == "person 0"


def test_four_methods_that_share_video_ids_are_four_times_as_many_videos() -> None:
    """Defect 1 of the reference benchmark: it counts and scores the 560 fakes of pooled FF++ as 140."""
    methods = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")
    scores = make_scores("ff", methods, people=140, photographs=1, frames=2)
    scores.loc[scores["method"] == "NeuralTextures", "score"] *= 0.5
    row = evaluate(scores, DECISIONS, draws=100).datasets[0]
    assert (row.real_videos, row.fake_videos, row.videos) == (140, 560, 700)
    by_hand = scores.groupby(["method", "video_id"]).agg(label=("label", "first"), score=("score", "mean"))
    assert row.video_auc.value == pytest.approx(roc_auc_score(by_hand["label"], by_hand["score"]))
    assert [method.videos for method in row.methods] == [140] * 4
    for method in row.methods:
        one = by_hand.loc[["real", method.method]]
        assert method.video_auc.value == pytest.approx(roc_auc_score(one["label"], one["score"]))


def test_a_dataset_with_one_class_is_undefined_and_stays_out_of_the_mean() -> None:
    both, fakes = make_scores("both"), make_scores("fakes", seed=1)
    card = evaluate(pd.concat([both, fakes[fakes["label"] == 1]]), DECISIONS, draws=200)
    assert math.isnan(card.datasets[1].video_auc.value)
    assert card.video_auc.value == card.datasets[0].video_auc.value
    assert macro_video_auc(pd.concat([both, fakes[fakes["label"] == 1]])) == card.video_auc.value
    assert math.isnan(macro_video_auc(fakes[fakes["label"] == 1]))
    assert card.frame == card.datasets[0].frame
    assert [row["video AUC"] for row in card.table()][1] == "undefined"
    assert [row["95 % interval"] for row in card.table()][1] == "undefined"
    assert "fakes.video_auc" not in card.metrics()
    assert card.metrics()["fakes.videos"] == 40


def test_scorecard_equals_scikit_learn_and_is_plain_json() -> None:
    first, second = make_scores("a", ("swap", "reenact")), make_scores("b", quality=0.5, seed=3)
    card = evaluate(pd.concat([first, second]), DECISIONS, draws=500)
    flat = json.loads(json.dumps(card.metrics(), allow_nan=False))
    for name, scores in {"a": first, "b": second}.items():
        videos = video_scores(scores)
        assert flat[f"{name}.frame_auc"] == pytest.approx(roc_auc_score(scores["label"], scores["score"]))
        assert flat[f"{name}.video_auc"] == pytest.approx(roc_auc_score(videos["label"], videos["score"]))
        assert flat[f"{name}.video_auc_low"] < flat[f"{name}.video_auc"] < flat[f"{name}.video_auc_high"]
        assert flat[f"{name}.coverage"] == 1
    assert flat["macro.video_auc"] == pytest.approx((flat["a.video_auc"] + flat["b.video_auc"]) / 2)
    assert flat["macro.video_auc_low"] < flat["macro.video_auc"] < flat["macro.video_auc_high"]
    assert {"a.swap.video_auc", "a.reenact.video_auc_low"} <= flat.keys()
    assert "b.upsample.video_auc" not in flat  # one method: the dataset's own figure
    assert [row["dataset"] for row in card.table()] == ["a", "b", "macro mean"]


def test_intervals_are_reproducible_and_do_not_depend_on_the_other_datasets() -> None:
    first, second = make_scores("a"), make_scores("b", seed=3)
    alone = evaluate(first, DECISIONS, draws=300, seed=7)
    together = evaluate(pd.concat([second, first]), DECISIONS, draws=300, seed=7)
    assert alone.datasets[0] == together.datasets[1]
    assert evaluate(first, DECISIONS, draws=300, seed=8) != alone


def test_interval_is_over_persons_where_a_person_has_several_videos() -> None:
    """Copies of every video under another name hold no news: over persons the interval stays as wide."""
    once = make_scores(people=30, photographs=1)
    copies = [once.assign(video_id=once["video_id"] + f"_{copy}") for copy in range(5)]
    many = pd.concat(copies, ignore_index=True)

    def width(scores: pd.DataFrame) -> float:
        estimate = evaluate(scores, DECISIONS, draws=2000).datasets[0].video_auc
        return estimate.high - estimate.low

    assert width(many) == pytest.approx(width(once))
    assert width(many.assign(identity="")) < 0.6 * width(once)


def test_coverage_counts_videos_without_a_scored_frame() -> None:
    scores = make_scores(people=10, photographs=1)
    lost = (scores["video_id"] == "3_0") & (scores["method"] == "real")
    scores.loc[lost, ["score", "outcome"]] = [np.nan, "no face"]
    row = evaluate(scores, DECISIONS, draws=100).datasets[0]
    assert (row.videos, row.real_videos, row.frames) == (19, 9, 57)
    assert row.coverage == pytest.approx(19 / 20)


def test_nothing_scored_at_all_is_undefined() -> None:
    scores = make_scores(people=2).assign(outcome="no face", score=np.nan)
    card = evaluate(scores, DECISIONS, draws=100)
    assert math.isnan(card.video_auc.value)
    assert card.datasets[0].coverage == 0


def broken(kind: str) -> pd.DataFrame:
    scores = make_scores(people=2)
    if kind == "column":
        return scores.drop(columns="outcome")
    if kind == "twice":
        return pd.concat([scores, scores.iloc[:1]])
    if kind == "nan":
        scores.loc[0, "score"] = np.nan
    if kind == "mixed":
        scores.loc[0, "label"] = 1
    return scores


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("column", "lack the columns outcome"),
        ("twice", "1 frames are scored twice, upsample/real/0_0/0"),
        ("nan", "no finite score"),
        ("mixed", "Video upsample/real/0_0 has real and fake frames"),
    ],
)
def test_broken_scores_are_named(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(broken(kind), DECISIONS, draws=100)


@pytest.mark.parametrize("level", ["frame", "video"])
def test_identical_models_differ_by_nothing(level: str) -> None:
    scores = pd.concat([make_scores("a"), make_scores("b", seed=1)])
    shuffled = scores.sample(frac=1, random_state=0)
    difference = paired_bootstrap(scores, shuffled, ["a", "b"], level=level, draws=300)  # type: ignore[arg-type]
    assert difference.value == pytest.approx(0, abs=1e-12)
    assert (difference.low, difference.high) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("level", ["frame", "video"])
def test_paired_difference_equals_the_difference_of_scikit_learn_and_is_narrower_than_unpaired(
    level: str,
) -> None:
    a = pd.concat([make_scores("a"), make_scores("b", seed=1)], ignore_index=True)
    noise = np.random.default_rng((4,)).normal(0, 0.1, len(a))
    b = a.assign(score=(a["score"] + noise).clip(0, 1))
    difference = paired_bootstrap(a, b, ["a", "b"], level=level, draws=1000)  # type: ignore[arg-type]
    by_hand = []
    for name in ("a", "b"):
        tables = [scores[scores["dataset"] == name] for scores in (a, b)]
        tables = [video_scores(table) if level == "video" else table for table in tables]
        first, second = (roc_auc_score(table["label"], table["score"]) for table in tables)
        by_hand.append(first - second)
    assert difference.value == pytest.approx(np.mean(by_hand))
    assert difference.low < difference.value < difference.high
    unpaired = evaluate(a, DECISIONS, draws=1000).video_auc
    assert difference.high - difference.low < unpaired.high - unpaired.low


def test_paired_comparison_needs_the_same_frames() -> None:
    scores = make_scores()
    failed = scores.assign(outcome=["no face", *["ok"] * (len(scores) - 1)])
    with pytest.raises(UserError, match="differ in 1 frames or labels, upsample/real/0_0/0/0"):
        paired_bootstrap(scores, failed, ["upsample"], draws=100)
    with pytest.raises(UserError, match="No scores of dataset upsmaple"):
        paired_bootstrap(scores, scores, ["upsmaple"], draws=100)


def test_paired_comparison_leaves_out_datasets_of_one_class() -> None:
    both, reals = make_scores("both"), make_scores("reals")
    scores = pd.concat([both, reals[reals["label"] == 0]])
    better = scores.assign(score=scores["label"].astype(float))
    alone = paired_bootstrap(better, scores, ["both"], draws=100)
    assert paired_bootstrap(better, scores, ["both", "reals"], draws=100).value == alone.value
    assert math.isnan(paired_bootstrap(better, scores, ["reals"], draws=100).value)


def test_each_level_is_judged_by_its_own_decision() -> None:
    scores = pd.concat([make_scores("a", ("swap", "reenact")), make_scores("b", quality=0.5, seed=3)])
    flat = evaluate(scores, DECISIONS, draws=100).metrics()
    for level, rows in {"frame": scores, "video": video_scores(scores)}.items():
        decision = DECISIONS[level]  # type: ignore[index]
        for name, part in rows.groupby("dataset"):
            labels, given = part["label"].to_numpy(), part["score"].to_numpy()
            accuracy = balanced_accuracy_score(labels, given >= decision.threshold)
            assert flat[f"{name}.{level}_balanced_accuracy"] == pytest.approx(accuracy, abs=1e-9)
            precision = average_precision_score(labels, given)
            assert flat[f"{name}.{level}_average_precision"] == pytest.approx(precision, abs=1e-9)
            for stated, key in (
                (decision.calibration.probability(given), "calibration_error"),
                (given, "score_calibration_error"),
            ):
                assert flat[f"{name}.{level}_{key}"] == pytest.approx(gap_in_bins(labels, stated), abs=1e-9)
        one = rows[(rows["dataset"] == "a") & rows["method"].isin(["real", "swap"])]
        assert flat[f"a.swap.{level}_auc"] == pytest.approx(roc_auc_score(one["label"], one["score"]), abs=1e-9)
        for figure in ("auc", "equal_error_rate", "calibration_error", "tpr_at_fpr_0.05"):
            mean = (flat[f"a.{level}_{figure}"] + flat[f"b.{level}_{figure}"]) / 2
            assert flat[f"macro.{level}_{figure}"] == pytest.approx(mean, abs=1e-12)


def gap_in_bins(labels: np.ndarray, stated: np.ndarray) -> float:
    """The calibration error, bin by bin."""
    total = 0.0
    for low in range(15):
        inside = (stated * 15 >= low) & ((stated * 15 < low + 1) | (low == 14))
        if inside.any():
            total += inside.mean() * abs(labels[inside].mean() - stated[inside].mean())
    return total


def test_datasets_of_different_sources_stay_out_of_the_macro_means() -> None:
    first, second = make_scores("a"), make_scores("b", quality=4, seed=3)
    card = evaluate(pd.concat([first, second]), DECISIONS, draws=200, left_out={"b", "absent"})
    alone = evaluate(first, DECISIONS, draws=200)
    assert (card.video_auc, card.frame, card.video) == (alone.video_auc, alone.frame, alone.video)
    assert card.left_out == ("b",)
    assert math.isfinite(card.datasets[1].video_auc.value)
    none = evaluate(second, DECISIONS, draws=200, left_out={"b"})
    assert math.isnan(none.video_auc.value)
    assert not any(name.startswith("macro.") for name in none.metrics())


def test_distorted_frames_do_not_judge() -> None:
    scores = make_scores()
    distorted = scores.assign(distortion="blur", level=2, score=0.5)
    assert evaluate(pd.concat([scores, distorted]), DECISIONS, draws=100) == evaluate(scores, DECISIONS, draws=100)


def test_delong_is_of_independent_videos_alone() -> None:
    several, single = make_scores(), make_scores(photographs=1, methods=("upsample",))
    other = single.assign(score=np.random.default_rng((4,)).random(len(single)))
    assert paired_delong(several, several, "upsample") is None  # a person has several videos
    assert paired_delong(single, single, "upsample") is None  # a real one and a fake one
    unknown, theirs = single.assign(identity=""), other.assign(identity="").sample(frac=1, random_state=0)
    found = paired_delong(unknown, theirs, "upsample")
    assert found is not None
    a, b = (video_scores(table).sort_values(["method", "video_id"]) for table in (unknown, theirs))
    expected = delong_difference(*(each.to_numpy() for each in (a["label"], a["score"], b["score"])))
    assert found.p_value == pytest.approx(expected.p_value)
    assert found.estimate.low == pytest.approx(expected.estimate.low)
    bootstrap = paired_bootstrap(unknown, theirs, ["upsample"], draws=2000)
    assert found.estimate.value == pytest.approx(bootstrap.value)
    assert found.estimate.low == pytest.approx(bootstrap.low, abs=0.03)
    assert found.estimate.high == pytest.approx(bootstrap.high, abs=0.03)
    assert paired_delong(unknown[unknown["label"] == 0], theirs[theirs["label"] == 0], "upsample") is None
