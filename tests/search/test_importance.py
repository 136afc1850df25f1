"""Importance of hyper-parameters, from the table of a search."""

from __future__ import annotations

import io

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from masm.search import suggest
from masm.search.importance import BEST, LEAST, importance
from masm.settings import SearchSpace

SPACE = SearchSpace.model_validate(
    {
        "rank": {"type": "choice", "values": [8, 16]},
        "subspaces": {"type": "choice", "values": [2, 4]},
        "mask_threshold": {"type": "uniform", "lower": 0.0, "upper": 0.4},
        "lambda_orth": {"type": "loguniform", "lower": 0.001, "upper": 0.1},
        "lambda_spec": {"type": "loguniform", "lower": 0.001, "upper": 0.1},
    }
)
NAMES = ["rank", "subspaces", "mask_threshold", "lambda_orth", "lambda_spec"]


def search(trials: int) -> tuple[optuna.Study, pd.DataFrame]:
    """A study in which lambda_orth alone decides, and its trials as search/trials.csv has them."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    rows = []
    for _ in range(trials):
        trial = study.ask()
        point = suggest(trial, SPACE, NAMES)
        score = 0.9 - 0.1 * abs(np.log10(point["lambda_orth"]) + 2)
        study.tell(trial, score)
        rows.append({"trial": trial.number, "state": "COMPLETE", "score": score, **point})
    written = pd.DataFrame(rows).to_csv(index=False)
    return study, pd.read_csv(io.StringIO(written))


def test_it_is_that_of_the_study_itself() -> None:
    study, trials = search(60)
    found = importance(trials, SPACE, NAMES)
    assert found == pytest.approx(
        get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=BEST))
    )
    assert max(found, key=lambda name: found[name]) == "lambda_orth"
    assert found["lambda_orth"] > 0.5
    assert sum(found.values()) == pytest.approx(1)


def test_trials_that_were_stopped_or_failed_have_no_say() -> None:
    _, trials = search(40)
    others = trials.assign(state=np.where(trials["trial"] % 2, "PRUNED", "FAIL"), score=1 - trials["score"])
    assert importance(pd.concat([trials, others]), SPACE, NAMES) == importance(trials, SPACE, NAMES)


def test_of_few_trials_nothing_is_said() -> None:
    _, trials = search(LEAST)
    assert importance(trials, SPACE, NAMES)
    assert importance(trials.iloc[1:], SPACE, NAMES) == {}
    assert importance(trials, SPACE, []) == {}
