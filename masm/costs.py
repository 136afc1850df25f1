"""Time and money that a model took, by stage and by trial of the search: what the report shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from masm.settings import Settings
from masm.timings import read_timings

BEFORE = ("validate", "search", "train")
"""The stages, after the ingests, that are done when the report is written."""


@dataclass(frozen=True)
class Cost:
    """What a stage or a trial took; None is unknown, and `price` is None where no price per hour is set."""

    what: str
    seconds: float
    cpu_seconds: float | None
    peak_memory_bytes: int | None
    price: float | None

    def texts(self) -> tuple[str, str, str, str]:
        """Time, processors' time, memory and price, ready to print; empty where unknown."""
        memory = "" if self.peak_memory_bytes is None else f"{self.peak_memory_bytes / 2**30:.1f} GiB"
        price = "" if self.price is None else f"{self.price:.3f}"
        return duration(self.seconds), "" if self.cpu_seconds is None else duration(self.cpu_seconds), memory, price


def duration(seconds: float) -> str:
    """Such as "7.2 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


@dataclass(frozen=True)
class Costs:
    """Of the stages that were timed, in their order, of all of them together, and of the trials of the search.

    `price_per_hour` is the setting; without it nothing has a price.
    """

    stages: tuple[Cost, ...]
    total: Cost
    trials: tuple[Cost, ...]
    price_per_hour: float | None


def read_costs(settings: Settings, trials: pd.DataFrame) -> Costs:
    """What the stages before `evaluate` cost when they last ran on this machine.

    Args:
        settings: whose `evaluate.price_per_hour` is that of a machine.
        trials: search/trials.csv, with columns trial and seconds.
    """
    price = settings.evaluate.price_per_hour
    names = [*(f"ingest@{name}" for name in settings.datasets), *BEFORE]
    stages = stage_costs(settings.root / "timings", names, price)
    return Costs(stages, total_of(stages), trial_costs(trials, settings.search.concurrent, price), price)


def stage_costs(folder: Path, names: Sequence[str], price_per_hour: float | None) -> tuple[Cost, ...]:
    """The costs of these stages; those that have not run here are left out."""
    timings = read_timings(folder)
    return tuple(
        Cost(name, took.seconds, took.cpu_seconds, took.peak_memory_bytes, _price(took.seconds, price_per_hour))
        for name in names
        if (took := timings.get(name)) is not None
    )


def trial_costs(trials: pd.DataFrame, concurrent: int, price_per_hour: float | None) -> tuple[Cost, ...]:
    """The costs of the trials; those that run at once share the price of the machine."""
    share = None if price_per_hour is None else price_per_hour / min(concurrent, max(1, len(trials)))
    times = zip(trials["trial"].tolist(), trials["seconds"].tolist(), strict=True)
    return tuple(Cost(f"trial {trial}", seconds, None, None, _price(seconds, share)) for trial, seconds in times)


def total_of(costs: Sequence[Cost]) -> Cost:
    """All together; the memory is that of the stage with the most."""
    prices = [cost.price for cost in costs if cost.price is not None]
    return Cost(
        what="all",
        seconds=sum(cost.seconds for cost in costs),
        cpu_seconds=sum(cost.cpu_seconds or 0 for cost in costs),
        peak_memory_bytes=max((cost.peak_memory_bytes or 0 for cost in costs), default=0),
        price=sum(prices) if prices else None,
    )


def _price(seconds: float, per_hour: float | None) -> float | None:
    return None if per_hour is None else seconds / 3600 * per_hour
