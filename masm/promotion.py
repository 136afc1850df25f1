"""Which of two models is the better one across datasets, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

import pandas as pd

from masm.evaluation import macro_estimate, paired_bootstrap
from masm.scorecard import Estimate, number

ROUNDING = 1e-9  # AUCs closer than this are the same


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
class Verdict:
    """The outcome of a comparison; AUCs are macro means over the test datasets, at video level.

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
        estimates = (
            ("video_auc", self.challenger),
            ("champion_video_auc", self.champion),
            ("difference", self.difference),
        )
        figures = {
            f"{name}{suffix}": value
            for name, estimate in estimates
            if estimate is not None
            for suffix, value in zip(("", "_low", "_high"), astuple(estimate), strict=True)
            if math.isfinite(value)
        }
        return {"verdict": self.word, "reason": self.reason, **figures}


def compare(
    challenger: pd.DataFrame,
    champion: pd.DataFrame,
    datasets: Sequence[str],
    champion_name: str,
    draws: int,
    seed: int,
) -> Verdict:
    """Judge two models by their scores of the same frames; a tie keeps the champion.

    Args:
        challenger, champion: scores (see `masm.evaluation`).
        datasets: the test datasets to judge on.
        champion_name: what to call the champion in the reason.
        draws: bootstrap draws.
        seed: of the bootstrap.

    Raises:
        UserError: the two were not scored on the same frames.
    """
    difference = paired_bootstrap(challenger, champion, datasets, draws=draws, seed=seed)
    new, old = (estimate_macro_video_auc(scores, datasets, draws, seed) for scores in (challenger, champion))
    figures = f"mean video AUC {number(new.value)} against {number(old.value)} of {champion_name}"
    if not math.isfinite(difference.value):
        return Verdict(
            False, "no test dataset that can decide has both classes: nothing to compare on", new, old, difference
        )
    if abs(difference.value) <= ROUNDING:
        return Verdict(False, f"a tie keeps the champion: {figures}", new, old, difference)
    better = difference.value > 0
    reason = f"{figures}: {difference.value:+.3f}, 95 % interval {difference.interval()}"
    return Verdict(better, f"{'better' if better else 'not better'}: {reason}", new, old, difference)


def estimate_macro_video_auc(scores: pd.DataFrame, datasets: Sequence[str], draws: int, seed: int) -> Estimate:
    """Mean video AUC over the datasets, with its bootstrap interval."""
    chosen = scores[scores["dataset"].isin(datasets)]
    return macro_estimate(chosen, draws, seed)
