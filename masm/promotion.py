"""The gate: which conditions a model must meet to serve, and whether it is the better one across datasets."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain
from typing import Any

import pandas as pd

from masm.evaluation import macro_estimate, paired_bootstrap, video_scores
from masm.metrics import area_under_curve
from masm.scorecard import ADAPTED, Estimate, number
from masm.settings import Gate

ROUNDING = 1e-9  # AUCs closer than this are the same
TAG_LENGTH = 5000  # of MLflow's databases
NO_JUDGE = "no test dataset that can decide has both classes"
ROBUSTNESS_DROP = f"{ADAPTED}.macro.robustness_drop"
CALIBRATION_ERROR = f"{ADAPTED}.macro.video_calibration_error"
ESTIMATES = ("video_auc", "champion_video_auc", "difference")
FIGURES = tuple(f"{name}{suffix}" for name in ESTIMATES for suffix in ("", "_low", "_high"))
"""What a verdict can say in figures, each a tag of the version."""


@dataclass(frozen=True)
class Condition:
    """Something that is asked of a model.

    Attributes:
        name: what is limited: `gain` and `floor.DATASET` from below, all others from above.
        limit: the setting of section `gate`.
        value: what the model has; NaN where it was not measured.
        holds: whether it is met; what was not measured is left open, and holds.
        note: more about the value, or why there is none.
    """

    name: str
    limit: float
    value: float
    holds: bool
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.name} {number(self.value)}, limit {self.limit:g}{note}"


@dataclass(frozen=True)
class Contender:
    """A model that wants to become champion.

    Attributes:
        scores: of the test datasets (see `masm.evaluation`).
        metrics: metrics.json, without what was recorded on other data than the scores.
        latency: milliseconds for one crop; NaN where it was not measured.
        clean: whether its code and settings are those of a known commit.
        missing: why `metrics` may lack a figure.
    """

    scores: pd.DataFrame
    metrics: Mapping[str, float]
    latency: float
    clean: bool
    missing: str = "not measured"


@dataclass(frozen=True)
class Champion:
    """The model that serves: what to call it, and its scores of the same frames."""

    name: str
    scores: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """Two models on one test dataset, or in the mean of those that can decide; `difference` is a minus b, paired."""

    dataset: str
    a: Estimate
    b: Estimate
    difference: Estimate
    decides: bool


@dataclass(frozen=True)
class Verdict:
    """The outcome of the gate; AUCs are macro means over the test datasets that can decide, at video level.

    `difference` is challenger minus champion; it and `champion` are None where nothing was compared.
    """

    promoted: bool
    reason: str
    challenger: Estimate
    champion: Estimate | None = None
    difference: Estimate | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def word(self) -> str:
        """The verdict as it stands in tags."""
        return "promoted" if self.promoted else "held"

    def without(self, left_out: Mapping[str, str]) -> Verdict:
        """The same verdict, its reason saying which test datasets could not decide, and why."""
        said = [
            f"; {dataset} could not decide, as its reals and fakes come from different sources ({signs})"
            for dataset, signs in left_out.items()
        ]
        return replace(self, reason=self.reason + "".join(said))

    def summary(self) -> dict[str, str | float]:
        """Verdict, reason and figures, flat; what is undefined or was not compared is left out."""
        none = (math.nan,) * 3
        estimates = (self.challenger, self.champion, self.difference)
        values = chain.from_iterable(none if each is None else astuple(each) for each in estimates)
        figures = {key: value for key, value in zip(FIGURES, values, strict=True) if math.isfinite(value)}
        return {"verdict": self.word, "reason": self.reason, **figures}

    def record(self) -> dict[str, Any]:
        """The summary and all conditions, for JSON; null is a value that was not measured."""
        conditions = [asdict(each) | {"value": _finite(each.value)} for each in self.conditions]
        return {**self.summary(), "conditions": conditions}

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps(self.record(), indent=2) + "\n"

    def tags(self) -> dict[str, str]:
        """The summary and the conditions in a line, as tags of a version."""
        conditions = "; ".join(f"{'' if each.holds else 'NOT '}{each}" for each in self.conditions)
        texts = {**self.summary(), "conditions": conditions or "none"}
        return {key: str(value)[:TAG_LENGTH] for key, value in texts.items()}


def judge(
    gate: Gate, challenger: Contender, champion: Champion | None, datasets: Sequence[str], draws: int, seed: int
) -> Verdict:
    """Judge a model by its scores and figures; a tie keeps the champion, and the first model has none to beat.

    Args:
        gate: the conditions.
        challenger: the model.
        champion: the model that serves, scored on the same frames; None where there is none yet.
        datasets: the test datasets that can decide.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: the two were not scored on the same frames.
    """
    areas = dataset_areas(challenger.scores, datasets)
    own = estimate_macro_video_auc(challenger.scores, datasets, draws, seed)
    absolute = _absolute_conditions(gate, challenger, areas)
    if champion is None and not math.isfinite(own.value):
        return Verdict(False, f"{NO_JUDGE}: nothing to judge by", own, conditions=absolute)
    if champion is None:
        return _decided("there is no champion yet to compare with", own, absolute)
    theirs = estimate_macro_video_auc(champion.scores, datasets, draws, seed)
    difference = paired_bootstrap(challenger.scores, champion.scores, datasets, draws=draws, seed=seed)
    undecided = Verdict(False, "", own, theirs, difference, absolute)
    if not math.isfinite(difference.value):
        return replace(undecided, reason=f"{NO_JUDGE}: nothing to compare on")
    figures = f"mean video AUC {number(own.value)} against {number(theirs.value)} of {champion.name}"
    if abs(difference.value) <= ROUNDING:
        return replace(undecided, reason=f"a tie keeps the champion: {figures}")
    relative = _relative_conditions(gate, difference, areas, dataset_areas(champion.scores, datasets))
    head = f"{_compared(relative, difference)}: {figures}: {difference.value:+.3f}"
    verdict = _decided(f"{head}, 95 % interval {difference.interval()}", own, (*relative, *absolute))
    return replace(verdict, champion=theirs, difference=difference)


def _compared(relative: Sequence[Condition], difference: Estimate) -> str:
    """The comparison in a word: "better" is a matter of the condition on the gain, without which there are signs."""
    gains = [each.holds for each in relative if each.name == "gain"]
    if not gains:
        return "higher" if difference.value > 0 else "lower"
    return "better" if all(gains) else "not better"


def _decided(head: str, own: Estimate, conditions: tuple[Condition, ...]) -> Verdict:
    """The verdict that these conditions give; its reason names those that do not hold, but for the gain."""
    failed = [f"; not met: {each}" for each in conditions if not each.holds and each.name != "gain"]
    return Verdict(all(each.holds for each in conditions), head + "".join(failed), own, conditions=conditions)


def _relative_conditions(
    gate: Gate, difference: Estimate, ours: Mapping[str, float], theirs: Mapping[str, float]
) -> tuple[Condition, ...]:
    """What is asked of a model in comparison with the champion."""
    conditions = []
    if gate.min_gain is not None:
        holds = difference.low > gate.min_gain
        note = "lower bound of the paired difference, which must lie above it"
        conditions.append(Condition("gain", gate.min_gain, difference.low, holds, note))
    if gate.max_drop is not None:
        drops = {name: theirs[name] - ours[name] for name in ours if math.isfinite(theirs[name] - ours[name])}
        worst = max(drops, key=lambda name: drops[name])
        note = f"{worst}, under the champion's video AUC"
        conditions.append(_at_most("drop", gate.max_drop, drops[worst], note))
    return tuple(conditions)


def _absolute_conditions(gate: Gate, model: Contender, areas: Mapping[str, float]) -> tuple[Condition, ...]:
    """What is asked of a model by itself."""
    floors = {name: gate.floors.get(name, gate.floors["default"]) for name in areas}
    conditions = [_floor(name, limit, areas[name]) for name, limit in floors.items() if limit is not None]
    drop, error = (model.metrics.get(key, math.nan) for key in (ROBUSTNESS_DROP, CALIBRATION_ERROR))
    limits = (
        ("robustness drop", gate.max_robustness_drop, drop, model.missing),
        ("calibration error", gate.max_calibration_error, error, model.missing),
        ("latency (ms)", gate.max_latency_ms, model.latency, "not measured"),
    )
    for name, limit, value, missing in limits:
        if limit is not None:
            note = "" if math.isfinite(value) else f"left open: {missing}"
            conditions.append(_at_most(name, limit, value, note))
    if gate.clean_tree:
        note = "" if model.clean else "code or settings are not those of a commit"
        conditions.append(_at_most("uncommitted changes", 0.0, float(not model.clean), note))
    return tuple(conditions)


def _floor(dataset: str, limit: float, value: float) -> Condition:
    name = f"floor.{dataset}"
    if not math.isfinite(value):
        return Condition(name, limit, value, True, "left open: the dataset has one class")
    return Condition(name, limit, value, value >= limit)


def _at_most(name: str, limit: float, value: float, note: str = "") -> Condition:
    return Condition(name, limit, value, not math.isfinite(value) or value <= limit, note)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def dataset_areas(scores: pd.DataFrame, datasets: Sequence[str]) -> dict[str, float]:
    """Video AUC of each dataset; NaN where it has one class."""
    videos = video_scores(scores[scores["dataset"].isin(datasets)])
    parts = {name: videos[videos["dataset"] == name] for name in datasets}
    return {
        name: area_under_curve(part["label"].to_numpy(), part["score"].to_numpy(dtype=float))
        for name, part in parts.items()
    }


def estimate_macro_video_auc(scores: pd.DataFrame, datasets: Sequence[str], draws: int, seed: int) -> Estimate:
    """Mean video AUC over the datasets, with its bootstrap interval."""
    chosen = scores[scores["dataset"].isin(datasets)]
    return macro_estimate(chosen, draws, seed)
