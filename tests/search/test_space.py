"""The space against brute force: which hyper-parameters a point has under which choices."""

from __future__ import annotations

import re
from typing import Any

import optuna
import pytest

from masm.search import suggest
from masm.settings import SearchSpace

BASE: dict[str, Any] = {
    "rank": {"type": "choice", "values": [2, 4]},
    "subspaces": {"type": "choice", "values": [1, 3]},
    "mask_threshold": {"type": "choice", "values": [0.1, 0.2], "when": {"mask_kind": ["static", "adaptive"]}},
    "lambda_orth": {"type": "choice", "values": [0.01, 0.1], "when": {"subspaces": [3]}},
    "lambda_spec": {"type": "choice", "values": [0.0], "when": {"subspaces": [3], "mask_kind": ["adaptive"]}},
    "mask_kind": {"type": "choice", "values": ["none", "static", "adaptive"]},
    "margin": {"type": "choice", "values": [0.5], "when": {"lambda_orth": [0.1]}},
}
NAMES = ["rank", "margin", "subspaces", "mask_threshold", "lambda_orth", "lambda_spec", "mask_kind"]


def all_points() -> set[frozenset[tuple[str, Any]]]:
    """Every point of BASE, written out by hand."""
    points = set()
    for rank in (2, 4):
        for kind in ("none", "static", "adaptive"):
            for threshold in (None,) if kind == "none" else (0.1, 0.2):
                for subspaces, orth in ((1, None), (3, 0.01), (3, 0.1)):
                    spec = 0.0 if subspaces == 3 and kind == "adaptive" else None
                    margin = 0.5 if orth == 0.1 else None
                    values = (rank, margin, subspaces, threshold, orth, spec, kind)
                    points.add(frozenset((n, v) for n, v in zip(NAMES, values, strict=True) if v is not None))
    return points


def test_every_conditional_combination_is_reached_and_no_other() -> None:
    """Optuna's exhaustive sampler walks the tree that `suggest` is."""
    space = SearchSpace.model_validate(BASE)
    study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler(seed=0))
    seen = []
    study.optimize(lambda trial: seen.append(frozenset(suggest(trial, space, NAMES).items())) or 0.0, n_trials=1000)
    assert len(seen) == len(set(seen)) == 30
    assert set(seen) == all_points()


def test_ranges_are_those_of_the_settings() -> None:
    scales: dict[str, Any] = {
        **BASE,
        "mask_threshold": {"type": "uniform", "lower": 0.1, "upper": 0.3},
        "lr": {"type": "loguniform", "lower": 1e-4, "upper": 1e-2},
    }
    trial = optuna.create_study().ask()
    point = suggest(trial, SearchSpace.model_validate(scales), ["rank", "mask_threshold", "lr"])
    assert trial.params == point
    assert trial.distributions == {
        "rank": optuna.distributions.CategoricalDistribution((2, 4)),
        "mask_threshold": optuna.distributions.FloatDistribution(0.1, 0.3),
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    }


def test_the_same_trial_says_the_same_again() -> None:
    space = SearchSpace.model_validate(BASE)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trial = study.ask()
    point = suggest(trial, space, NAMES)
    assert suggest(optuna.Trial(study, trial._trial_id), space, NAMES) == point


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("rank", {"values": []}, "there is nothing to choose from"),
        ("rank", {"values": [2, 2]}, "2 stands twice"),
        ("rank", {"when": {"subspaces": [3]}}, "rank cannot have a `when`: every trial needs it"),
        ("margin", {"when": {"lr": [0.1]}}, "margin.when names lr, which is not in search.space"),
        ("margin", {"when": {"subspaces": [5]}}, "margin.when asks for subspaces 5, but it is one of"),
        ("margin", {"when": {"subspaces": []}}, "margin.when asks for subspaces no value at all"),
        ("lambda_orth", {"when": {"margin": [0.5]}}, "when leads back to lambda_orth itself"),
        ("lambda_orth", {"when": {"lambda_orth": [0.1]}}, "lambda_orth.when leads back to lambda_orth itself"),
    ],
)
def test_contradictions_are_named(name: str, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        SearchSpace.model_validate({**BASE, name: {**BASE[name], **change}})


def test_only_a_choice_can_be_a_condition() -> None:
    threshold = {"type": "uniform", "lower": 0, "upper": 1}
    spec = {"type": "choice", "values": [1], "when": {"mask_threshold": [0.5]}}
    with pytest.raises(ValueError, match="names mask_threshold, which is no choice"):
        SearchSpace.model_validate({**BASE, "mask_threshold": threshold, "lambda_spec": spec})
