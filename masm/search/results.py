"""What a search found: its trials and epochs as tables, the Pareto front, and the trial that is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from masm.search.trials import epochs_of, own_trials
from masm.settings import Search


def trials_table(study: optuna.Study, names: Sequence[str], search: Search) -> pd.DataFrame:
    """One row for each trial, in the order in which they were begun.

    Args:
        study: whose trials have ended.
        names: what is searched.
        search: the settings.

    Returns:
        Columns trial; state (COMPLETE, PRUNED for one that was stopped early, FAIL); epochs, that it trained; score,
        of the last of them, NaN where it failed; each of `names`, NaN where a condition left it out; the second
        objective by its name, where there is one; seconds.
    """
    second = [search.second_objective.name] if search.second_objective else []
    rows = [_row(trial, names, second) for trial in own_trials(study)]
    return pd.DataFrame(rows, columns=["trial", "state", "epochs", "score", *names, *second, "seconds"])


def _row(trial: FrozenTrial, names: Sequence[str], second: Sequence[str]) -> list[object]:
    lines = epochs_of(trial)
    failed = trial.state is TrialState.FAIL
    score = math.nan if failed or not lines else lines[-1]["score"]
    point = [trial.params.get(name) for name in names]
    costs = [trial.values[1] if trial.values else None for _ in second]
    return [trial.number, trial.state.name, len(lines), score, *point, *costs, sum(line["seconds"] for line in lines)]


def epochs_table(study: optuna.Study) -> pd.DataFrame:
    """One row for each epoch of each trial: columns trial, epoch, score, and what else the history has."""
    rows = [{"trial": trial.number, **line} for trial in own_trials(study) for line in epochs_of(trial)]
    table = pd.DataFrame(rows)
    first = [name for name in ("trial", "epoch", "score") if name in table]
    return table[[*first, *(name for name in table if name not in first)]]


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that trained all their epochs: no other has a score that counts."""
    return [trial for trial in own_trials(study) if trial.state is TrialState.COMPLETE]


def front(study: optuna.Study) -> list[int]:
    """The numbers of the complete trials that no other betters in one objective without losing in the other."""
    values = {trial.number: np.array(trial.values) * [1, -1] for trial in complete(study)}
    return [
        number
        for number, own in values.items()
        if not any((other >= own).all() and (other > own).any() for other in values.values())
    ]


def chosen_trial(study: optuna.Study, search: Search) -> FrozenTrial:
    """The complete trial with the best score; with a second objective the cheapest of those about as good.

    Of equals it is the one with the better score, then the earlier one.

    Args:
        study: with one complete trial or more.
        search: whose `second_objective.tolerance` says what is about as good.
    """
    trials = complete(study)
    best = max(trial.values[0] for trial in trials)
    if search.second_objective is None:
        return next(trial for trial in trials if trial.values[0] == best)
    good = [trial for trial in trials if trial.values[0] >= best - search.second_objective.tolerance]
    return min(good, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))
