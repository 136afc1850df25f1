from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from masm.costs import Cost, duration, read_costs, total_of, trial_costs
from masm.settings import Settings, load_settings
from masm.timings import Timing
from tests.conftest import ROOT


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The shipped settings at 3.60 per hour, in a workspace where some stages have run."""
    shipped = load_settings(ROOT / "params.yaml")
    priced = shipped.evaluate.model_copy(update={"price_per_hour": 3.6})
    (tmp_path / "timings").mkdir()
    timings = {
        "train": Timing(200.0, 390.0, 3 * 2**30, "2026-01-01T00:04:00+00:00"),
        "ingest@swap": Timing(10.0, 20.0, 2**30, "2026-01-01T00:01:00+00:00"),
        "ingest@removed": Timing(99.0, 99.0, 2**33, "2026-01-01T00:02:00+00:00"),
        "evaluate": Timing(77.0, 99.0, 2**33, "2025-01-01T00:00:00+00:00"),  # of a former run
    }
    for name, timing in timings.items():
        (tmp_path / "timings" / f"{name}.json").write_text(json.dumps(asdict(timing)))
    return shipped.model_copy(update={"root": tmp_path, "evaluate": priced})


def test_the_stages_that_made_the_model_are_counted(settings: Settings) -> None:
    trials = pd.DataFrame({"trial": [0, 1, 2], "rank": [8, 16, 8], "seconds": [100.0, 50.0, 30.0]})
    costs = read_costs(settings, trials)
    assert [cost.what for cost in costs.stages] == ["ingest@swap", "train"]
    assert costs.stages[1] == Cost("train", 200.0, 390.0, 3 * 2**30, pytest.approx(0.2))
    assert costs.total == Cost("all", 210.0, 410.0, 3 * 2**30, pytest.approx(0.21))
    # Two trials at once share the machine: half of 3.60 per hour for each.
    assert [cost.price for cost in costs.trials] == pytest.approx([0.05, 0.025, 0.015])


def test_without_a_price_there_is_time_alone(settings: Settings) -> None:
    free = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"price_per_hour": None})})
    costs = read_costs(free, pd.DataFrame({"trial": [0], "seconds": [12.0]}))
    assert {cost.price for cost in (*costs.stages, costs.total, *costs.trials)} == {None}


def test_a_single_trial_has_the_machine_for_itself() -> None:
    (cost,) = trial_costs(pd.DataFrame({"trial": [0], "seconds": [1800.0]}), concurrent=4, price_per_hour=2.0)
    assert cost.price == pytest.approx(1.0)
    assert total_of([]) == Cost("all", 0, 0, 0, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.24, "7.2 s"), (59.96, "1 min 00 s"), (185.4, "3 min 05 s"), (3599.6, "1 h 00 min"), (7620, "2 h 07 min")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_unknown_is_empty() -> None:
    assert Cost("trial 0", 3.0, None, None, None).texts() == ("3.0 s", "", "", "")
    assert Cost("train", 90.0, 61.0, 3 * 2**29, 0.1234).texts() == ("1 min 30 s", "1 min 01 s", "1.5 GiB", "0.123")
