"""Which hyper-parameters set the best trials of a search apart."""

from __future__ import annotations

import optuna
import pandas as pd
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FixedTrial

from masm.search.space import suggest
from masm.settings import SearchSpace

BEST = 0.25
"""The share of the trials that count as the best."""
LEAST = 20
"""Complete trials below which nothing is said: Optuna asks for five among the best."""


def importance(trials: pd.DataFrame, space: SearchSpace, names: list[str]) -> dict[str, float]:
    """PED-ANOVA of the complete trials: how far the best quarter's values of a hyper-parameter lie from all trials'.

    By Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces" (IJCAI
    2023), as Optuna has it; conditional hyper-parameters count, too.

    Args:
        trials: columns trial, state, score and `names`, NaN where a condition left one out.
        space: the ranges.
        names: what was searched.

    Returns:
        Shares that sum to 1; none where there are fewer than LEAST complete trials.
    """
    complete = trials[trials["state"] == "COMPLETE"]
    if len(complete) < LEAST or not names:
        return {}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
    for row in complete.to_dict("records"):
        fixed = FixedTrial({name: row[name] for name in names if pd.notna(row[name])})
        point = suggest(fixed, space, names)
        study.add_trial(optuna.trial.create_trial(params=point, distributions=fixed.distributions, value=row["score"]))
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST))
