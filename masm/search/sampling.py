"""What chooses the points of a search."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial

from masm.search.space import suggest
from masm.search.trials import own_trials
from masm.settings import Settings, Uniform

STARTUP, PRIOR_WEIGHT = 5, 5.0
"""Points that are drawn at random first, and the weight of the whole space beside the good points. Optuna's are 10 and
1: in some dozens of trials it stays with the first good ones (docs/reference/benchmarks.md)."""
TRIES = 20
"""Draws in search of a point that was not tried, and ten times as many at random: without one, one is tried again."""


def make_sampler(settings: Settings, seed: int) -> BaseSampler:
    """What chooses the points: the tree-structured Parzen estimator over all hyper-parameters at once, in groups where
    some are conditional (Bergstra et al. 2011; Optuna), or a Gaussian process, which takes conditional ones at random.
    """
    if settings.search.sampler == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group` is, since 2.8
        warnings.simplefilter("ignore", FutureWarning)  # `prior_weight` goes with Optuna 6
        return NewPointSampler(
            settings, seed=seed, n_startup_trials=STARTUP, prior_weight=PRIOR_WEIGHT, multivariate=True, group=True
        )


class NewPointSampler(TPESampler):
    """Optuna's, but for points that were tried: a trial depends on its point alone, and on the seed.

    Where all hyper-parameters are choices, the best of them would be proposed again and again. It draws again then,
    and where it insists, at random.
    """

    def __init__(self, settings: Settings, seed: int, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self._space, self._names = settings.search.space, settings.searched
        ranges = {name: self._space.bounds(name) for name in self._names}
        choices = {name: bounds.values for name, bounds in ranges.items() if not isinstance(bounds, Uniform)}
        self._given = {name: values[0] for name, values in choices.items() if len(values) == 1}  # Optuna draws no such
        self._random = RandomSampler(seed)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the hyper-parameters that are drawn together."""
        tried = [other.params for other in own_trials(study) if other.number != trial.number]
        for draw in [*repeat(super().sample_relative, TRIES), *repeat(self._draw_at_random, 10 * TRIES)]:
            drawn = draw(study, trial, search_space)
            if self._point({**drawn, **trial.params}) not in tried:  # a trial that was cut short has some of them
                break
        return drawn

    def _draw_at_random(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        draw = self._random.sample_independent
        return {name: draw(study, trial, name, distribution) for name, distribution in search_space.items()}

    def _point(self, drawn: Mapping[str, Any]) -> dict[str, Any] | None:
        """Of the values drawn, those that hold; None where the sampler knows too little as yet to draw all."""
        try:
            return suggest(FixedTrial({**self._given, **drawn}), self._space, self._names)
        except ValueError:
            return None
