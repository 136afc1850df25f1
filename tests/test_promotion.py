"""The gate's conditions, by figures that are known beforehand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from masm.promotion import CALIBRATION_ERROR, ROBUSTNESS_DROP, Champion, Contender, Verdict, judge
from masm.settings import Gate

OFF: dict[str, Any] = {
    "min_gain": None,
    "floors": {"default": None},
    "max_drop": None,
    "max_robustness_drop": None,
    "max_calibration_error": None,
    "max_latency_ms": None,
    "clean_tree": False,
}
VIDEOS = 60


def make_scores(**separation: float) -> pd.DataFrame:
    """Scores of datasets in which the fakes' lie so many standard deviations above the reals'; one frame a video."""
    rows = []
    for number, (dataset, distance) in enumerate(separation.items()):
        noise = np.random.default_rng(number).normal(size=2 * VIDEOS)
        for index, value in enumerate(noise):
            label = index % 2
            rows.append((dataset, dataset if label else "real", f"v{index}", label, value + distance * label))
    table = pd.DataFrame(rows, columns=["dataset", "method", "video_id", "label", "score"])
    table["score"] = 1 / (1 + np.exp(-table["score"]))
    return table.assign(frame_index=0, identity="", outcome="ok", distortion="none", level=0)


def contender(scores: pd.DataFrame, **known: Any) -> Contender:
    return Contender(**{"scores": scores, "metrics": {}, "latency": math.nan, "clean": True} | known)


def decide(gate: dict[str, Any], challenger: Contender, champion: pd.DataFrame | None = None) -> Verdict:
    rival = None if champion is None else Champion("champion version 1", champion)
    datasets = list(challenger.scores["dataset"].unique())
    return judge(Gate(**OFF | gate), challenger, rival, datasets, draws=500, seed=0)


def auc(scores: pd.DataFrame, dataset: str) -> float:
    rows = scores[scores["dataset"] == dataset]
    return float(roc_auc_score(rows["label"], rows["score"]))


def condition(verdict: Verdict, name: str) -> Any:
    (found,) = [each for each in verdict.conditions if each.name == name]
    return found


def test_gain_is_the_lower_bound_of_the_paired_difference() -> None:
    weak, strong = make_scores(a=0.5, b=0.5), make_scores(a=2.0, b=2.0)
    verdict = decide({"min_gain": 0.0}, contender(strong), weak)
    assert verdict.promoted
    assert verdict.difference is not None
    found = condition(verdict, "gain")
    assert found.value == verdict.difference.low > 0
    assert verdict.difference.value == pytest.approx(
        np.mean([auc(strong, name) - auc(weak, name) for name in ("a", "b")]), abs=1e-12
    )
    above = decide({"min_gain": found.value}, contender(strong), weak)  # it must lie above, not on it
    assert not above.promoted
    assert above.reason.startswith("not better")


def test_better_by_chance_is_not_better() -> None:
    weak = make_scores(a=0.0)
    others = (weak.assign(score=np.random.default_rng(seed).permutation(weak["score"])) for seed in range(100))
    chance = next(other for other in others if 0 < auc(other, "a") - auc(weak, "a") < 0.05)
    verdict = decide({"min_gain": 0.0}, contender(chance), weak)
    assert verdict.difference is not None
    assert verdict.difference.value > 0
    assert verdict.difference.low <= 0
    assert not verdict.promoted


def test_tie_keeps_the_champion_whatever_is_switched_off() -> None:
    scores = make_scores(a=1.0)
    verdict = decide({}, contender(scores), scores.copy())
    assert not verdict.promoted
    assert verdict.reason.startswith("a tie keeps the champion")


def test_one_dataset_that_falls_holds_a_model_that_is_better_in_the_mean() -> None:
    before, after = make_scores(a=0.2, b=1.5), make_scores(a=3.0, b=0.6)
    fall = auc(before, "b") - auc(after, "b")
    assert fall > 0.05
    held = decide({"min_gain": 0.0, "max_drop": fall - 1e-6}, contender(after), before)
    assert not held.promoted
    assert condition(held, "gain").holds
    drop = condition(held, "drop")
    assert drop.value == pytest.approx(fall, abs=1e-12)
    assert drop.note.startswith("b,")
    assert held.reason.startswith("better")
    assert "not met: drop" in held.reason
    assert decide({"min_gain": 0.0, "max_drop": fall + 1e-6}, contender(after), before).promoted


def test_first_model_needs_its_floors_dataset_by_dataset() -> None:
    scores = make_scores(a=0.0, b=2.0)
    low, high = auc(scores, "a"), auc(scores, "b")
    assert decide({"floors": {"default": low - 1e-6}}, contender(scores)).promoted
    verdict = decide({"floors": {"default": low - 1e-6, "b": high + 1e-6}}, contender(scores))
    assert not verdict.promoted
    assert condition(verdict, "floor.a").holds
    assert not condition(verdict, "floor.b").holds
    assert verdict.reason.startswith("there is no champion yet")
    assert "not met: floor.b" in verdict.reason
    assert decide({"floors": {"default": 1.1, "a": None, "b": None}}, contender(scores)).conditions == ()


def test_floor_of_a_dataset_with_one_class_is_left_open() -> None:
    scores = make_scores(a=1.0, b=1.0)
    scores = scores[(scores["dataset"] == "a") | (scores["label"] == 1)]
    found = condition(decide({"floors": {"default": 0.5}}, contender(scores)), "floor.b")
    assert found.holds
    assert math.isnan(found.value)
    assert "one class" in found.note


@pytest.mark.parametrize(
    ("setting", "name", "known"),
    [
        ("max_robustness_drop", "robustness drop", {"metrics": {ROBUSTNESS_DROP: 0.2}}),
        ("max_calibration_error", "calibration error", {"metrics": {CALIBRATION_ERROR: 0.2}}),
        ("max_latency_ms", "latency (ms)", {"latency": 0.2}),
    ],
)
def test_absolute_conditions_limit_the_first_model_and_the_others(
    setting: str, name: str, known: dict[str, Any]
) -> None:
    weak, strong = make_scores(a=0.5), make_scores(a=3.0)
    for champion in (None, weak):
        assert decide({setting: 0.2}, contender(strong, **known), champion).promoted
        held = decide({setting: 0.19}, contender(strong, **known), champion)
        assert not held.promoted
        assert (condition(held, name).value, condition(held, name).limit) == (0.2, 0.19)
        unmeasured = condition(decide({setting: 0.19}, contender(strong), champion), name)
        assert unmeasured.holds
        assert unmeasured.note == "left open: not measured"


def test_figures_of_other_data_are_left_open_and_said_so() -> None:
    gate = {"max_robustness_drop": 0.1, "max_latency_ms": 1.0}
    verdict = decide(gate, contender(make_scores(a=1.0), missing="recorded on other data"))
    assert verdict.promoted
    assert condition(verdict, "robustness drop").note == "left open: recorded on other data"
    assert condition(verdict, "latency (ms)").note == "left open: not measured"


@pytest.mark.parametrize("datasets", [["a"], []])
def test_first_model_that_nothing_judged_is_held(datasets: list[str]) -> None:
    scores = make_scores(a=1.0)
    one_class = scores[scores["label"] == 1]
    for judged in (one_class, scores[scores["dataset"] == "none"]) if datasets else (scores,):
        verdict = judge(Gate(**OFF), contender(judged), None, datasets, draws=100, seed=0)
        assert not verdict.promoted
        assert verdict.reason == "no test dataset that can decide has both classes: nothing to judge by"


def test_without_a_condition_on_the_gain_the_sign_is_said() -> None:
    weak, strong = make_scores(a=0.2), make_scores(a=3.0)
    for challenger, champion, word in ((weak, strong, "lower: "), (strong, weak, "higher: ")):
        verdict = decide({}, contender(challenger), champion)
        assert verdict.promoted  # no condition is asked for
        assert verdict.reason.startswith(word)


def test_uncommitted_changes_hold_where_the_tree_must_be_clean() -> None:
    scores = make_scores(a=1.0)
    assert decide({}, contender(scores, clean=False)).promoted
    assert decide({"clean_tree": True}, contender(scores)).promoted
    assert "uncommitted changes" in decide({"clean_tree": True}, contender(scores, clean=False)).reason


def test_without_a_dataset_that_can_decide_nothing_replaces_a_champion() -> None:
    scores = make_scores(a=1.0)
    rival = Champion("champion version 1", scores)
    verdict = judge(Gate(**OFF), contender(make_scores(a=3.0)), rival, [], draws=100, seed=0)
    assert not verdict.promoted
    assert "nothing to compare on" in verdict.reason


def test_record_is_json_and_tags_are_short_texts() -> None:
    scores = make_scores(**{f"dataset-{number}": 1.0 for number in range(40)})
    floors = {"floors": {"default": 0.99}, "max_latency_ms": 1.0}
    verdict = decide(floors, contender(scores)).without({"other": "none of its videos " * 500})
    record = json.loads(verdict.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert record["verdict"] == "held"
    assert [each["name"] for each in record["conditions"]][-1] == "latency (ms)"
    assert record["conditions"][-1]["value"] is None
    tags = verdict.tags()
    assert all(0 < len(text) <= 5000 for text in tags.values())
    assert "NOT floor.dataset-0" in tags["conditions"]
