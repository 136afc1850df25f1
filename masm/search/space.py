"""params.yaml's ranges as a space of Optuna's that is defined by running it, so that a range can depend on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import BaseTrial

from masm.settings import SearchSpace, Uniform


def suggest(trial: BaseTrial, space: SearchSpace, names: Sequence[str]) -> dict[str, Any]:
    """A value for each of some hyper-parameters, drawn by the trial; those whose `when` does not hold are left out.

    Args:
        trial: of Optuna; one that has drawn before says the same again.
        space: their ranges.
        names: what is searched, everything that a `when` of theirs names among it.
    """
    point: dict[str, Any] = {}
    for name in _parents_first(space, names):
        conditions = space.bounds(name).when
        if all(parent in point and point[parent] in values for parent, values in conditions.items()):
            point[name] = _draw(trial, space, name)
    return point


def _draw(trial: BaseTrial, space: SearchSpace, name: str) -> Any:
    bounds = space.bounds(name)
    if isinstance(bounds, Uniform):
        return trial.suggest_float(name, bounds.lower, bounds.upper, log=bounds.type == "loguniform")
    return trial.suggest_categorical(name, bounds.values)


def _parents_first(space: SearchSpace, names: Sequence[str]) -> list[str]:
    """The names in their order, but each after those on which it depends."""
    ordered: list[str] = []

    def add(name: str) -> None:
        for parent in space.bounds(name).when:
            add(parent)
        if name not in ordered:
            ordered.append(name)

    for name in names:
        add(name)
    return ordered
