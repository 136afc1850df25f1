"""The search on a recorded objective, against random search; and the time that Ray Tune adds to a trial.

- `search.of_grid_best`: (found - grid's median) / (best - grid's median), in the median over 20 seeds, where found is
  the full-length score of the search's best point. The objective is a grid of real runs of the London protocol
  (`tests.benchmarks.record_objective`); the search is the project's own, its sampler and space and Ray's ASHA, by two
  workers at once. It may cost a quarter of the epochs of the whole grid.
- `search.cost_of_grid`: the epochs that it spent at most, over the grid's; those of trials that were stopped, or that
  the end of the budget cut off, are counted.
- `search.wins_over_random`: seeds on which it found a better point than random search in the same space, which spends
  as many epochs and trains each point to its end. A tie is no win: `search.ties_with_random`. Where random search
  meets the grid's best, on `search.best_met_by_random` seeds, nothing can win; the search does on `search.best_met`.
- `search.seconds_per_trial_overhead`: seconds of the stage's own Tune set-up over trials that do nothing but report
  recorded scores; 20 trials, two at once.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import optuna
import typer
import yaml
from optuna.samplers import RandomSampler
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from masm.cluster import connected
from masm.search import Work, make_sampler, open_study, study_storage, suggest
from masm.settings import Role, Settings, load_settings
from masm.tracking import Recorder
from pipelines.tuning import make_scheduler, run_trials
from tests.benchmarks.output import Figures, show
from tests.benchmarks.record_objective import RECORDING
from tests.benchmarks.replay import Recording, Replay
from tests.conftest import ROOT

SHARE, SEEDS, CONCURRENT, TRIALS = 0.25, 20, 2, 20
STOPPING = {"grace_epochs": 1, "reduction": 3}
Results = list[tuple[float, int]]


def grid_settings(root: Path, recording: Recording, stopping: dict[str, Any] | None) -> Settings:
    """A workspace whose search has the recording's grid as its space; a threshold is drawn where there is a mask."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    space: dict[str, Any] = {name: {"type": "choice", "values": values} for name, values in recording.values.items()}
    space["mask_threshold"]["when"] = {"mask_kind": ["adaptive"]}
    search, optimisation = tree["search"], tree["search"]["optimisation"]
    search |= {"space": space, "stopping": stopping, "concurrent": CONCURRENT, "trials": TRIALS}
    optimisation["epochs"] = recording.epochs
    del tree["train"]["lr"], optimisation["lr"], tree["mask"]["kind"]  # searched
    tree["compare"] = {}  # whose masm would need a mask_kind of its own
    tree["ray"]["storage"] = str(root / "ray")
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    return load_settings(root / "params.yaml")


def search_grid(settings: Settings, recording: Recording, budget: int, seed: int) -> tuple[float, int]:
    """The score that the project's search finds, and the epochs that it spends."""
    search = settings.search
    replay = Replay(
        recording,
        partial(suggest, space=search.space, names=settings.searched),
        make_sampler(settings, seed),
        make_scheduler(search, []),
        search.concurrent,
    )
    return replay.run(budget), replay.spent


def search_at_random(settings: Settings, recording: Recording, budget: int, seed: int) -> tuple[float, int]:
    """The same by random search, which stops no trial."""
    search = settings.search
    draw = partial(suggest, space=search.space, names=settings.searched)
    replay = Replay(recording, draw, RandomSampler(seed=seed), FIFOScheduler(), search.concurrent)
    return replay.run(budget), replay.spent


def compare(settings: Settings, recording: Recording, seeds: int = SEEDS) -> Figures:
    """Both searches from the same seeds, at the same cost."""
    budget = int(SHARE * recording.cost)
    ours = np.array([search_grid(settings, recording, budget, seed) for seed in range(seeds)])
    random = np.array([search_at_random(settings, recording, budget, seed) for seed in range(seeds)])
    found = [recording.of_best(score) for score in ours[:, 0]]
    return {
        "search.of_grid_best": float(np.median(found)),
        "search.of_grid_best_least": min(found),
        "search.of_grid_best_by_random": float(np.median([recording.of_best(score) for score in random[:, 0]])),
        "search.cost_of_grid": ours[:, 1].max() / recording.cost,
        "search.wins_over_random": int((ours[:, 0] > random[:, 0]).sum()),
        "search.ties_with_random": int((ours[:, 0] == random[:, 0]).sum()),
        "search.best_met_by_random": int((random[:, 0] == recording.best).sum()),
        "search.best_met": int((ours[:, 0] == recording.best).sum()),
    }


class RecordedTrial(tune.Trainable):
    """A trial of the stage that trains nothing: the recording says what would have come of it."""

    def setup(self, config: dict[str, Any], recording: Recording) -> None:
        """Called once in each process."""
        self._recording = recording
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Turn to another point."""
        self._scores = self._recording.scores[self._recording.key(new_config)]
        self._history: list[dict[str, float]] = []
        return True

    def step(self) -> dict[str, Any]:
        """One epoch."""
        epoch = len(self._history) + 1
        line = {"epoch": epoch, "score": float(self._scores[epoch - 1]), "seconds": 0.0}
        self._history = [*self._history, line]
        return {**line, "history": self._history, "done": epoch == len(self._scores)}


def measure_overhead(settings: Settings, recording: Recording) -> Figures:
    """Seconds that the stage's Tune set-up takes for each trial that costs nothing, from the start of its actors."""
    work = Work("bench", {}, {role: {} for role in get_args(Role)})
    study = open_study(settings, study_storage(settings), work, work.name)
    trainable = tune.with_parameters(RecordedTrial, recording=recording)
    recorder = Recorder(settings.mlflow, settings.root / "journal.jsonl")
    with connected(settings.ray, cpus=settings.search.concurrent), recorder:
        recorder.start(study.study_name, "search", {}, {})
        before = time.perf_counter()
        run_trials(trainable, settings, study, str(settings.root / "work"), recorder)
        seconds = time.perf_counter() - before
    return {"search.seconds_per_trial_overhead": seconds / settings.search.trials}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    recording_path: Annotated[Path, typer.Option("--recording", help="the CSV of the objective")] = RECORDING,
    seeds: Annotated[int, typer.Option(help="searches of each kind")] = SEEDS,
) -> None:
    """Measure the search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recording = Recording.read(recording_path)
    with tempfile.TemporaryDirectory() as folder:
        stopping, whole = Path(folder) / "stopping", Path(folder) / "whole"
        figures = compare(grid_settings(stopping, recording, STOPPING), recording, seeds)
        figures |= measure_overhead(grid_settings(whole, recording, None), recording)
    show(f"Search by {CONCURRENT} workers, {seeds} seeds", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
