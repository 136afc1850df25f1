"""What a study's trials say.

Those that a warm start brought from an earlier study bear OF in their attributes: the sampler learns from them, and
nothing else counts them. An epoch's figures are the attribute `epoch N` of its trial, written when they are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

OF, EPOCH = "warm_start", "epoch "


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials, without those of a warm start."""
    return [trial for trial in study.get_trials(deepcopy=False) if OF not in trial.user_attrs]


def unfinished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a search which was cut short had begun."""
    return [trial for trial in own_trials(study) if not trial.state.is_finished()]


def record_epochs(trial: optuna.Trial, lines: Iterable[Mapping[str, float]]) -> None:
    """Write down the epochs that the study does not know yet; what prunes and samples reads their scores.

    Args:
        trial: that runs.
        lines: of its history, each with epoch and score.
    """
    known = trial.user_attrs
    for line in lines:
        if (name := f"{EPOCH}{line['epoch']}") not in known:
            if len(trial.study.directions) == 1:  # Optuna has no intermediate values of two objectives
                trial.report(line["score"], line["epoch"])
            trial.set_user_attr(name, dict(line))


def epochs_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    """The lines of a trial's history, in order."""
    lines = [line for name, line in trial.user_attrs.items() if name.startswith(EPOCH)]
    return sorted(lines, key=lambda line: line["epoch"])
