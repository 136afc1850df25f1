"""A search over a recorded objective: its trials take the time and have the scores of the recording."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

Point = Mapping[str, Any]
Suggest = Callable[[optuna.Trial], Point]


@dataclass(frozen=True)
class Recording:
    """A grid of points, each trained to its end.

    Attributes:
        names: the hyper-parameters.
        values: those of each that the grid has.
        scores: (epochs,) of each point, by its values in the order of `names`; "" is a hyper-parameter that the
            point does not have.
        seconds: (epochs,) that these took.
    """

    names: tuple[str, ...]
    values: dict[str, list[Any]]
    scores: dict[tuple[Any, ...], np.ndarray]
    seconds: dict[tuple[Any, ...], np.ndarray]

    @classmethod
    def read(cls, path: Path) -> Recording:
        """What `tests.benchmarks.record_objective` wrote; the columns before `epoch` are the hyper-parameters."""
        table = pd.read_csv(path).astype(object)
        table = table.where(table.notna(), "")
        names = tuple(table.columns[: table.columns.get_loc("epoch")])
        groups = {key: rows.sort_values("epoch") for key, rows in table.groupby(list(names), sort=False)}
        columns = [
            {key: rows[column].to_numpy(np.float64) for key, rows in groups.items()} for column in ("score", "seconds")
        ]
        values = {name: sorted(set(table[name]) - {""}) for name in names}
        return cls(names, values, *columns)

    @property
    def epochs(self) -> int:
        """Of each point."""
        return len(next(iter(self.scores.values())))

    @property
    def cost(self) -> int:
        """Epochs of the whole grid."""
        return self.epochs * len(self.scores)

    def key(self, point: Point) -> tuple[Any, ...]:
        """Where a point's scores are."""
        return tuple(point.get(name, "") for name in self.names)

    @property
    def best(self) -> float:
        """The greatest full-length score of the grid."""
        return float(max(own[-1] for own in self.scores.values()))

    def of_best(self, score: float) -> float:
        """Where a full-length score lies: 0 at the grid's median, 1 at its best."""
        median = float(np.median([own[-1] for own in self.scores.values()]))
        return (score - median) / (self.best - median)


@dataclass
class _Running:
    """A trial on one of the workers; Ray's schedulers know trials by their `trial_id`."""

    trial: optuna.Trial
    key: tuple[Any, ...]
    epoch: int = 0
    trial_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.trial_id = str(self.trial.number)


class Replay:
    """A search by workers that share out its trials, until the epochs that it may cost are spent.

    What the stage's search does by Tune is done here by hand: Optuna's study is asked for a point when a worker is
    free, learns of every epoch, and of a trial that the scheduler stops that it was pruned.

    Args:
        recording: the objective.
        suggest: asks a trial for a point.
        sampler: Optuna's.
        scheduler: one of Ray's, for results `epoch` and `score`.
        workers: trials at once.
    """

    def __init__(
        self, recording: Recording, suggest: Suggest, sampler: BaseSampler, scheduler: TrialScheduler, workers: int
    ) -> None:
        self._recording, self._suggest, self._scheduler = recording, suggest, scheduler
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._workers, self._order = workers, itertools.count()
        self._queue: list[tuple[float, int, _Running]] = []
        self.spent = 0

    def run(self, budget: int) -> float:
        """Spend `budget` epochs; returns the best score of a trial that was trained to its end, NaN where none was.

        Trials that are under way when the budget is spent are lost.
        """
        for _ in range(self._workers):
            self._begin(now=0.0)
        self.spent = self._workers
        while self._queue:
            now, _, running = heapq.heappop(self._queue)
            goes_on = self._finish_epoch(running)
            if self.spent < budget:
                self.spent += 1
                self._train(running, now) if goes_on else self._begin(now)
        return max((t.values[0] for t in self._study.get_trials(states=[TrialState.COMPLETE])), default=np.nan)

    def _begin(self, now: float) -> None:
        trial = self._study.ask()
        running = _Running(trial, self._recording.key(self._suggest(trial)))
        self._scheduler.on_trial_add(None, running)
        self._train(running, now)

    def _train(self, running: _Running, now: float) -> None:
        """One more epoch, done when the recording says."""
        seconds = self._recording.seconds[running.key][running.epoch]
        heapq.heappush(self._queue, (now + seconds, next(self._order), running))

    def _finish_epoch(self, running: _Running) -> bool:
        """Tell what the epoch gave; returns whether the trial goes on."""
        score = float(self._recording.scores[running.key][running.epoch])
        running.epoch += 1
        running.trial.report(score, running.epoch)
        result = {"epoch": running.epoch, "score": score}
        if running.epoch == self._recording.epochs:
            self._scheduler.on_trial_complete(None, running, result)
            self._study.tell(running.trial, score)
            return False
        if self._scheduler.on_trial_result(None, running, result) == TrialScheduler.STOP:
            self._study.tell(running.trial, state=TrialState.PRUNED)
            return False
        return True
