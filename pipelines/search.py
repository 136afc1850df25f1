"""Stage `search`: Ray Tune with Optuna looks for the hyper-parameters that carry over to other forgeries.

A trial trains on the train datasets and is scored on the `validate` datasets, whose people, and whose
forgeries, training never sees. The test datasets have no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
import torch
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.progress import Progress

from masm.cluster import connected, discard
from masm.data.frames import load_frames
from masm.data.versions import fetch_missing, work_name
from masm.errors import UserError
from masm.evaluation import macro_video_auc
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe, weights_digest
from masm.scoring import score
from masm.settings import Choice, SearchSpace, Settings
from masm.training import Trainer
from pipelines import run_stage


def main(settings: Settings) -> None:
    """Write search/best.json and search/trials.csv; a search that was cut short goes on where it was."""
    fetch_data(settings)
    with connected(settings.ray, cpus=settings.search.concurrent):
        sections = (settings.search, settings.adapter, settings.mask, settings.losses)
        name = work_name("search", settings, *sections, weights_digest(settings))
        results = _tuner(settings, name).fit()
    if results.num_errors:
        raise UserError(f"{results.num_errors} trials of the search failed; the first: {results.errors[0]}")
    _write(settings, results)
    discard(settings.ray.storage, name)


def fetch_data(settings: Settings) -> None:
    """Bring here what the stage reads, where it is not on this node."""
    names = (*settings.with_role("train"), *settings.with_role("validate"))
    fetch_missing(settings.root, [f"ingest@{name}" for name in names])


def trial(point: dict[str, Any], settings: Settings) -> None:
    """Train one candidate, and report its score on the `validate` datasets after every epoch."""
    torch.set_num_threads(1)
    fetch_data(settings)
    found = Hyperparameters.of(point, settings.losses)
    recipe = make_recipe(settings, settings.search.optimisation, found)
    # Each trial finds the frames anew: their places in files are those of its node.
    tables = [settings.table(dataset) for dataset in settings.with_role("train")]
    frames, validation = (load_frames(tables, split, settings.search.frames) for split in ("train", "val"))
    trainer = Trainer(build_detector(settings, found), recipe, frames, validation)
    while not trainer.finished:
        line = trainer.run_epoch()
        scores = score(trainer.detector, settings, settings.with_role("validate"))
        tune.report({**line, "score": macro_video_auc(scores)})


def search_space(space: SearchSpace, names: Sequence[str]) -> dict[str, Any]:
    """params.yaml's ranges of some hyper-parameters as Optuna's."""
    distributions: dict[str, Any] = {}
    for name in names:
        bounds = getattr(space, name)
        if isinstance(bounds, Choice):
            distributions[name] = optuna.distributions.CategoricalDistribution(bounds.values)
        else:
            log = bounds.type == "loguniform"
            distributions[name] = optuna.distributions.FloatDistribution(bounds.lower, bounds.upper, log=log)
    return distributions


def _tuner(settings: Settings, name: str) -> tune.Tuner:
    search = settings.search
    trainable = tune.with_resources(tune.with_parameters(trial, settings=settings), {"CPU": 1})
    path = f"{settings.ray.storage}/{name}"
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
    space = search_space(search.space, settings.searched)
    trials = search.trials if space else 1  # without anything to search, one run says what the method reaches
    sampler = optuna.samplers.TPESampler(seed=settings.seed)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            max_concurrent_trials=search.concurrent,
            search_alg=OptunaSearch(space, metric="score", mode="max", sampler=sampler) if space else None,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=settings.ray.storage, verbose=0, callbacks=[TrialProgress(trials)]
        ),
    )


class TrialProgress(tune.Callback):
    """A progress bar over the trials."""

    def __init__(self, trials: int) -> None:
        self._trials = trials

    def setup(self, **info: object) -> None:
        """Show the bar when the search begins."""
        self._bar = Progress(console=Console(stderr=True))
        self._task = self._bar.add_task("search", total=self._trials)
        self._bar.start()

    def on_trial_complete(self, **info: object) -> None:
        """One more trial is done."""
        self._bar.advance(self._task)

    def on_experiment_end(self, **info: object) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def _write(settings: Settings, results: tune.ResultGrid) -> None:
    """The best point, and one line for each trial."""
    folder = settings.root / "search"
    folder.mkdir(exist_ok=True)
    trials = results.get_dataframe()
    table = trials[[f"config/{name}" for name in settings.searched] + ["score", "val_auc", "time_total_s"]]
    table = table.rename(columns=lambda column: column.removeprefix("config/")).reset_index(drop=True)
    table.to_csv(folder / "trials.csv", index_label="trial")
    best = results.get_best_result("score", "max")
    found = Hyperparameters.of(best.config, settings.losses)
    scores = np.array(table["score"])
    (folder / "best.json").write_text(
        json.dumps(
            {
                "hyperparameters": asdict(found),
                "score": best.metrics["score"],
                "trials": len(table),
                "median_score": float(np.median(scores)),
                "datasets": settings.with_role("validate"),
            },
            indent=2,
        )
        + "\n"
    )
    Console(stderr=True).print(f"search: best of {len(table)} trials {best.metrics['score']:.3f} with {best.config}")


if __name__ == "__main__":
    run_stage(main)
