"""Ray Tune on a study of Optuna's: it places trials, stops the worse ones early, and starts lost ones again.

The study alone knows what was tried. What Tune itself writes down belongs to one process of the stage and is thrown
away: a stage that was killed begins with a new Tuner, which takes the study's unfinished trials first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import optuna
import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from masm.cluster import gpu_share
from masm.console import Progress
from masm.errors import UserError
from masm.parallel import RESTARTS
from masm.search import epochs_of, own_trials, record_epochs, suggest, unfinished
from masm.settings import Search, Settings
from masm.tracking import Recorder


class StudySearch(OptunaSearch):
    """Asks a study that is there already for points, and tells it what came of them.

    Ray's own makes its study itself, and does not know the trials that a killed process left in it; it tells of a
    trial that was stopped early as if it were complete, has no place for failures that are results, and writes
    itself into Ray's storage, with the password of the study's database.
    """

    def __init__(self, study: optuna.Study, settings: Settings) -> None:
        search = settings.search
        second = [search.second_objective.name] if search.second_objective else []
        self._study, self._epochs = study, search.optimisation.epochs
        self._left = unfinished(study)
        super().__init__(
            lambda trial: {"number": trial.number, **suggest(trial, search.space, settings.searched)},
            metric=["score", *second] if second else "score",
            mode=["max", "min"] if second else "max",
        )

    def _setup_study(self, mode: str | list[str]) -> None:
        self._ot_study = self._study

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The point of a trial that was cut short, as long as there is one; a new one then."""
        if trial_id not in self._ot_trials and self._left:
            self._ot_trials[trial_id] = optuna.Trial(self._study, self._left.pop(0)._trial_id)
        return super().suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Write down the epochs that are new."""
        record_epochs(self._ot_trials[trial_id], result["history"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write down its state; one that found no room for its checkpoint goes on when the stage is run again."""
        result = result or {}
        self.on_trial_result(trial_id, {"history": [], **result})
        if "full" in result:
            return
        if words := result.get("error"):
            self._ot_trials[trial_id].set_user_attr("error", words)
        state = TrialState.FAIL if error else state_of(result, self._epochs)
        whole = state is TrialState.COMPLETE
        super().on_trial_complete(trial_id, result if whole else None, error=state is TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is kept already."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def state_of(result: Mapping[str, Any], epochs: int) -> TrialState:
    """COMPLETE with all its epochs, PRUNED with fewer, FAIL where there is no score."""
    if not math.isfinite(result.get("score", math.nan)):
        return TrialState.FAIL
    return TrialState.COMPLETE if result["epoch"] == epochs else TrialState.PRUNED


class Trials:
    """The trials of a study as runs of MLflow's, each below that of the search.

    Args:
        recorder: of the runs.
        study: name of the study, the key of the search's run.
    """

    def __init__(self, recorder: Recorder, study: str) -> None:
        self._recorder, self._study = recorder, study

    def start(self, number: int, point: Mapping[str, Any]) -> None:
        """Begin a trial's run, or go on with it."""
        tags = {"trial": str(number)}
        self._recorder.start(self._key(number), f"trial {number}", point, tags, self._study)

    def log(self, number: int, lines: Sequence[Mapping[str, float]]) -> None:
        """Record epochs, by the lines of their history."""
        for line in lines:
            metrics = {name: value for name, value in line.items() if name != "epoch"}
            self._recorder.log(self._key(number), metrics, int(line["epoch"]))

    def finish(self, number: int, state: TrialState) -> None:
        """End a trial's run."""
        status = "FAILED" if state is TrialState.FAIL else "FINISHED"
        self._recorder.finish(self._key(number), status, {"state": state.name})

    def _key(self, number: int) -> str:
        return f"{self._study}/{number}"


def record_ended(recorder: Recorder, study: optuna.Study) -> None:
    """Record the trials that have ended: a process that was killed may not have come to it."""
    runs = Trials(recorder, study.study_name)
    for trial in own_trials(study):
        if trial.state.is_finished():
            runs.start(trial.number, trial.params)
            runs.log(trial.number, epochs_of(trial))
            runs.finish(trial.number, trial.state)


class Follower(tune.Callback):
    """Shows how many trials are done, and records each.

    Args:
        runs: where to.
        epochs: of a whole trial.
        done: trials of former processes.
        trials: in all.
    """

    def __init__(self, runs: Trials, epochs: int, done: int, trials: int) -> None:
        self._runs, self._epochs = runs, epochs
        self._bar = Progress()
        self._task = self._bar.add_task("search", total=trials, completed=done)
        self._seen: dict[int, int] = {}

    def setup(self, **info: object) -> None:
        """Show the bar when the search begins."""
        self._bar.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: object) -> None:
        """Begin the trial's run, or go on with it."""
        point = {name: value for name, value in trial.config.items() if name != "number"}
        self._runs.start(trial.config["number"], point)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Mapping[str, Any], **info: object
    ) -> None:
        """Record the epochs that are new."""
        number, history = trial.config["number"], result["history"]
        self._runs.log(number, history[self._seen.get(number, 0) :])
        self._seen[number] = len(history)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: object) -> None:
        """One more trial has ended, unless there was no room for its checkpoint."""
        if "full" not in trial.last_result:
            self._runs.finish(trial.config["number"], state_of(trial.last_result, self._epochs))
            self._bar.advance(self._task)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: object) -> None:
        """One more trial is given up."""
        self._runs.finish(trial.config["number"], TrialState.FAIL)
        self._bar.advance(self._task)

    def on_experiment_end(self, trials: list[Any], **info: object) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks into its storage, and would the recorder


class FullStorage(tune.Stopper):
    """Stops all trials when one of them finds no room for its checkpoint: the others would find none either.

    Attributes:
        words: what it said; empty as long as none did.
    """

    def __init__(self) -> None:
        self.words = ""

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Look at a result; the trial itself has ended already."""
        self.words = self.words or result.get("full", "")
        return False

    def stop_all(self) -> bool:
        """Whether it is time."""
        return bool(self.words)


class StudyScheduler(ASHAScheduler):
    """ASHA that is told of the epochs which a trial that goes on trained before.

    Its rule takes an epoch that it knows already for nothing new, so that a whole history can be told each time.
    """

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on after its last epoch."""
        self._tell_former(tune_controller, trial, result)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Remember a trial that has ended."""
        self._tell_former(tune_controller, trial, result)
        super().on_trial_complete(tune_controller, trial, result)

    def _tell_former(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        for line in result.get("history", [])[:-1]:
            super().on_trial_result(tune_controller, trial, line)


def make_scheduler(search: Search, former: Sequence[FrozenTrial]) -> TrialScheduler:
    """What stops trials early: nothing, or ASHA (Li et al. 2020), which knows the trials of former processes."""
    if search.stopping is None:
        return FIFOScheduler()
    scheduler = StudyScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=search.optimisation.epochs,
        grace_period=search.stopping.grace_epochs,
        reduction_factor=search.stopping.reduction,
    )
    for trial in former:
        known = SimpleNamespace(trial_id=f"former {trial.number}")
        scheduler.on_trial_add(None, known)
        for line in epochs_of(trial):
            scheduler.on_trial_result(None, known, line)
    return scheduler


def remaining(settings: Settings, study: optuna.Study) -> int:
    """How many trials are to be run; those of the study that have ended count, however they did."""
    trials = settings.search.trials if settings.searched else 1  # without anything to search, one says what is reached
    begun = len(unfinished(study))
    return max(trials - len(own_trials(study)) + begun, begun)


def run_trials(
    trainable: type[tune.Trainable], settings: Settings, study: optuna.Study, work: str, recorder: Recorder
) -> tune.ResultGrid:
    """Run what is left of a study's trials, one or more, on the connected cluster.

    Args:
        trainable: runs one point; its results have epoch, score, history (see `record_epochs`), done, and error where
            it found a mistake.
        settings: how many trials, how many at once, and what they search.
        study: what was tried already.
        work: path or URI for what Tune writes.
        recorder: of MLflow's runs.

    Raises:
        UserError: there is no room for the checkpoints; the trials that ran go on when the stage is run again.
    """
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a table in the end, whatever `verbose` says
    search, left, full = settings.search, remaining(settings, study), FullStorage()
    former = [trial for trial in own_trials(study) if trial.state.is_finished()]
    runs = Trials(recorder, study.study_name)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1, "GPU": gpu_share(search.concurrent, _gpus())}),
        tune_config=tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=search.concurrent,
            search_alg=StudySearch(study, settings),
            scheduler=make_scheduler(search, former),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{uuid4().hex[:12]}",
            storage_path=work,
            verbose=0,
            stop=full,
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[Follower(runs, search.optimisation.epochs, len(former), len(former) + left)],
        ),
    )
    grid = tuner.fit()
    if full.words:
        raise UserError(full.words)
    return grid


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))
