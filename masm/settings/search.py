"""The section of params.yaml about the search."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from masm.settings.method import GREATEST_MARGIN, MaskKind
from masm.settings.section import FileName, Section, distinct
from masm.settings.training import Optimisation
from masm.settings.urls import secrets_of

NEEDED = ("rank", "subspaces", "lr", "mask_kind")
"""Hyper-parameters that every trial needs, so that they cannot be conditional."""


class Bounds(Section):
    """The values that a hyper-parameter can take, and the choices of others under which it is drawn at all."""

    when: dict[str, tuple[int | float | str, ...]] = Field(
        default_factory=dict, description="names of other choices -> the values of them with which this one is drawn"
    )


class Uniform(Bounds):
    """A number between two bounds, on a plain or a logarithmic scale."""

    type: Literal["uniform", "loguniform"]
    lower: float
    upper: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if not self.lower < self.upper:
            raise ValueError(f"lower ({self.lower}) must be less than upper ({self.upper})")
        if self.type == "loguniform" and self.lower <= 0:
            raise ValueError(f"a logarithmic scale needs lower > 0, not {self.lower}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return self.lower, self.upper


def _some(values: tuple[int | float | str, ...]) -> tuple[int | float | str, ...]:
    if not values:
        raise ValueError("there is nothing to choose from: give one value or more")
    return distinct(values)


class Choice(Bounds):
    """One of some values."""

    type: Literal["choice"]
    values: Annotated[tuple[int | float, ...], AfterValidator(_some)]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return min(self.values), max(self.values)


class KindChoice(Bounds):
    """One of some kinds of the layer mask."""

    type: Literal["choice"]
    values: Annotated[tuple[MaskKind, ...], AfterValidator(_some)]


Range = Annotated[Uniform | Choice, Field(discriminator="type")]


class SearchSpace(Section):
    """The hyper-parameters that are searched; train takes the best of them and has no such keys itself.

    `hyperparameters_of` says which of them a method has, `Losses.numbers` which the losses have: the others are not
    searched, and 0. Of the losses' those are searched that have a range here; so are the learning rate and the kind
    of the mask.
    """

    rank: Choice
    subspaces: Choice
    mask_threshold: Range
    lambda_orth: Range
    lambda_spec: Range
    mask_kind: KindChoice | None = None
    lr: Range | None = None
    triplet_weight: Range | None = None
    margin: Range | None = None
    alignment_weight: Range | None = None
    uniformity_weight: Range | None = None
    attribution_weight: Range | None = None

    def bounds(self, name: str) -> Uniform | Choice | KindChoice:
        """Those of a hyper-parameter that has a range."""
        found: Uniform | Choice | KindChoice = getattr(self, name)
        return found

    @property
    def given(self) -> list[str]:
        """The names of those that have a range."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    @model_validator(mode="after")
    def _within_bounds(self) -> SearchSpace:
        for name in self.given:
            bounds = self.bounds(name)
            if not isinstance(bounds, KindChoice) and bounds.ends[0] < 0:
                raise ValueError(f"{name} cannot be below 0, as {bounds.ends[0]} is")
        if self.lr is not None and self.lr.ends[0] == 0:
            raise ValueError("lr must be above 0")
        if self.margin is not None and self.margin.ends[1] > GREATEST_MARGIN:
            raise ValueError(f"margin cannot be above {GREATEST_MARGIN:g}, as {self.margin.ends[1]} is")
        return self

    @model_validator(mode="after")
    def _conditions_can_hold(self) -> SearchSpace:
        for name in self.given:
            for parent, values in self.bounds(name).when.items():
                self._check_condition(name, parent, values)
            if name in self.ancestors(name):
                raise ValueError(f"{name}.when leads back to {name} itself: take one of the conditions out")
        return self

    def _check_condition(self, name: str, parent: str, values: tuple[int | float | str, ...]) -> None:
        if name in NEEDED:
            raise ValueError(f"{name} cannot have a `when`: every trial needs it")
        if parent not in self.given:
            raise ValueError(f"{name}.when names {parent}, which is not in search.space: give it a range, or drop it")
        bounds = self.bounds(parent)
        if isinstance(bounds, Uniform):
            raise ValueError(f"{name}.when names {parent}, which is no choice: only a choice can be a condition")
        if not values or (impossible := [value for value in values if value not in bounds.values]):
            never = f"{impossible[0]!r}" if values else "no value at all"
            raise ValueError(f"{name}.when asks for {parent} {never}, but it is one of {list(bounds.values)}")

    def ancestors(self, name: str) -> list[str]:
        """The names on which `name` depends, directly or not."""
        found: list[str] = []
        ahead = list(self.bounds(name).when)
        while ahead:
            parent = ahead.pop()
            if parent not in found:
                found.append(parent)
                ahead += self.bounds(parent).when if parent in self.given else ()
        return found


class Stopping(Section):
    """Asynchronous successive halving (ASHA): after each rung only the better share of the trials goes on."""

    grace_epochs: int = Field(default=1, ge=1, description="before a trial can be stopped")
    reduction: float = Field(default=3, ge=2, description="one in so many goes on to so many times the epochs")


class SecondObjective(Section):
    """What is wanted small beside a good score; of the trials about as good as the best the cheapest is taken."""

    name: Literal["trainable_parameters", "latency_ms"]
    tolerance: float = Field(default=0.005, ge=0, description="of the score below the best one")


class Study(Section):
    """Where Optuna keeps what was tried; MASM_STUDY_STORAGE of the environment goes before `storage`."""

    storage: str | None = Field(default=None, description="an SQLAlchemy URL; null: SQLite in ray.storage")
    name: FileName | None = Field(default=None, description="null: from the settings, the data and the code")

    @model_validator(mode="after")
    def _no_password(self) -> Study:
        if self.storage is not None and secrets_of(self.storage):
            raise ValueError("storage has a password, which git would keep: put the URL into MASM_STUDY_STORAGE")
        return self


class Search(Section):
    """The search; it fixes its own values, so that a change of train's does not repeat it."""

    trials: int = Field(ge=1)
    concurrent: int = Field(ge=1)
    frames: int = Field(ge=1, description="frames of each video that a trial sees")
    sampler: Literal["tpe", "gp"] = "tpe"
    stopping: Stopping | None = None
    second_objective: SecondObjective | None = None
    study: Study = Study()
    warm_start: str | None = Field(default=None, description="an earlier study of the storage, to learn from")
    optimisation: Optimisation
    space: SearchSpace

    @model_validator(mode="after")
    def _consistent(self) -> Search:
        if self.stopping is not None and self.sampler == "gp":
            raise ValueError("sampler gp learns from whole trials alone: take stopping out, or take sampler: tpe")
        if self.stopping is not None and self.second_objective is not None:
            raise ValueError("stopping judges trials by their score alone: take it or second_objective out")
        if self.stopping is not None and self.stopping.grace_epochs >= self.optimisation.epochs:
            raise ValueError(
                f"stopping.grace_epochs ({self.stopping.grace_epochs}) must be less than optimisation.epochs "
                f"({self.optimisation.epochs}), or no trial is ever stopped"
            )
        if self.warm_start is not None and self.warm_start == self.study.name:
            raise ValueError("warm_start is study.name itself, which goes on anyway: name an earlier study")
        return self


def study_url() -> str | None:
    """MASM_STUDY_STORAGE, which may hold a password: it never becomes part of the settings, which are recorded."""
    return os.environ.get("MASM_STUDY_STORAGE") or None
