"""The recorded objective is whole; its replay spends what it may and finds what a plain reading of the CSV says."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from tests.benchmarks.record_objective import EPOCHS, RECORDING, grid, named
from tests.benchmarks.replay import Point, Recording, Replay
from tests.benchmarks.search import STOPPING, compare, grid_settings, search_at_random, search_grid


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording.read(RECORDING)


def lines() -> list[dict[str, str]]:
    with RECORDING.open() as file:
        return list(csv.DictReader(file))


def test_every_point_of_the_grid_is_recorded_once_with_all_its_epochs() -> None:
    recorded = [(*named(row), row["epoch"]) for row in lines()]
    expected = [(*named(point), str(epoch)) for point in grid() for epoch in range(1, EPOCHS + 1)]
    assert sorted(recorded) == sorted(expected)
    assert all(0 <= float(row["score"]) <= 1 and float(row["seconds"]) > 0 for row in lines())


def test_the_scale_is_that_of_the_csv(recording: Recording) -> None:
    finals = [float(row["score"]) for row in lines() if row["epoch"] == str(EPOCHS)]
    middle, best = statistics.median(finals), max(finals)
    assert recording.cost == len(finals) * EPOCHS
    assert recording.of_best(middle) == pytest.approx(0)
    assert recording.of_best(best) == pytest.approx(1)
    assert recording.of_best((3 * best + middle) / 4) == pytest.approx(0.75)


RAMP = {(x,): np.array([x / 4, x / 2, x]) / 10 for x in range(8)}
SECONDS = [1 + x * math.sqrt(2) for x in range(8)]
SMALL = Recording(("x",), {"x": list(range(8))}, RAMP, {key: np.full(3, SECONDS[key[0]]) for key in RAMP})
"""Eight points whose order is the same after every epoch; the better a point, the longer its epochs."""


def draw(trial: optuna.Trial) -> Point:
    return {"x": trial.suggest_categorical("x", SMALL.values["x"])}


def drawn(seed: int, count: int) -> list[int]:
    """The points that random search begins with."""
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    return [draw(study.ask())["x"] for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_trials_cost_their_epochs_and_only_whole_ones_count(seed: int) -> None:
    for budget in range(2, 14):
        replay = Replay(SMALL, draw, RandomSampler(seed=seed), FIFOScheduler(), workers=1)
        whole = drawn(seed, 5)[: budget // 3]
        found = replay.run(budget)
        assert replay.spent == budget
        assert found == pytest.approx(max(whole) / 10) if whole else math.isnan(found)


@pytest.mark.parametrize("seed", range(3))
def test_two_workers_share_out_the_trials_by_their_seconds(seed: int) -> None:
    budget = 17
    replay = Replay(SMALL, draw, RandomSampler(seed=seed), FIFOScheduler(), workers=2)
    found, ends, points = replay.run(budget), [0.0, 0.0], drawn(seed, 20)
    epochs = []  # (begin, which of its trial, point) of every epoch; those that begin first are paid for
    for x in points:
        worker = int(ends[1] < ends[0])
        epochs += [(ends[worker] + SECONDS[x] * epoch, epoch, x) for epoch in range(3)]
        ends[worker] += 3 * SECONDS[x]
    whole = [x for _, epoch, x in sorted(epochs)[:budget] if epoch == 2]
    assert replay.spent == budget
    assert found == pytest.approx(max(whole) / 10)


def test_a_trial_that_is_stopped_frees_its_worker_and_is_no_result() -> None:
    scheduler = ASHAScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=3, grace_period=1, reduction_factor=3
    )
    replay = Replay(SMALL, draw, RandomSampler(seed=0), scheduler, workers=1)
    found, left = replay.run(24), 24
    seen: list[float] = []
    whole = []
    for x in drawn(0, 24):
        first = RAMP[(x,)][0]
        stays = not seen or first >= np.percentile(seen, 100 * 2 / 3)  # successive halving's rule, by hand
        seen.append(first)
        left -= 3 if stays else 1
        if left < 0:
            break
        whole += [x] if stays else []
    assert found == pytest.approx(max(whole) / 10)
    assert len(seen) > 8  # more points than whole trials would have been


def test_figures(recording: Recording, tmp_path: Path) -> None:
    """Counted by hand from the single searches, of which the seeds give wins, ties and losses as they come."""
    settings, seeds = grid_settings(tmp_path / "workspace", recording, STOPPING), 2
    budget = recording.cost // 4
    figures = compare(settings, recording, seeds)
    ours, spent = zip(*(search_grid(settings, recording, budget, seed) for seed in range(seeds)), strict=True)
    random = [search_at_random(settings, recording, budget, seed)[0] for seed in range(seeds)]
    finals = [float(row["score"]) for row in lines() if row["epoch"] == str(EPOCHS)]
    middle, best = statistics.median(finals), max(finals)
    shares = [(score - middle) / (best - middle) for score in ours]
    assert figures["search.of_grid_best"] == pytest.approx(statistics.median(shares))
    assert figures["search.of_grid_best_least"] == pytest.approx(min(shares))
    of_random = statistics.median((score - middle) / (best - middle) for score in random)
    assert figures["search.of_grid_best_by_random"] == pytest.approx(of_random)
    assert figures["search.cost_of_grid"] == max(spent) / recording.cost == pytest.approx(0.25, abs=1 / recording.cost)
    outcomes = [(own > other) - (own < other) for own, other in zip(ours, random, strict=True)]
    assert figures["search.wins_over_random"] == outcomes.count(1)
    assert figures["search.ties_with_random"] == outcomes.count(0)
    assert figures["search.best_met"] == ours.count(best)
    assert figures["search.best_met_by_random"] == random.count(best)
    assert len({*ours, *random}) > 1  # or all of these would hold of anything
