"""Stage `search`: Ray Tune with Optuna looks for the hyper-parameters that carry over to other forgeries.

A trial trains on the train datasets and is scored on the `validate` datasets, whose people, and whose
forgeries, training never sees. The test datasets have no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from ray import tune
from ray.exceptions import RayActorError

from masm.cluster import connected
from masm.console import STDERR
from masm.data.versions import digests, in_checkout, work_name
from masm.errors import UserError
from masm.hyperparameters import Hyperparameters, weights_digest
from masm.lineage import lineage
from masm.search import (
    SECOND_OBJECTIVE,
    Work,
    chosen_trial,
    complete,
    epochs_table,
    finish_study,
    front,
    open_study,
    own_trials,
    sole_driver,
    study_name,
    study_storage,
    trials_table,
)
from masm.settings import Role, Settings
from masm.storage import discard
from masm.tracking import Recorder, stage_recorder
from pipelines import run_stage
from pipelines.shared_images import share, shared
from pipelines.trials import Tables, TrialRun, fetch_data, load_tables
from pipelines.tuning import record_ended, remaining, run_trials


def main(settings: Settings) -> None:
    """Write search/best.json, trials.csv and epochs.csv; a search that was cut short goes on where it was."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    fetch_data(settings)
    work = describe(settings)
    try:
        storage = study_storage(settings)
        name = study_name(settings, storage, work)
        with sole_driver(name, storage):
            _drive(settings, open_study(settings, storage, work, name), storage, work)
    except StorageInternalError:
        raise UserError(
            "the study storage does not answer any more: start it, and run the stage again; it goes on where it was."
        ) from None


def _drive(settings: Settings, study: optuna.Study, storage: RDBStorage, work: Work) -> None:
    """Run what is left of the study, write what came of it, and clear up."""
    with stage_recorder(settings, study.study_name) as recorder:
        start_run(settings, study, recorder)
        record_ended(recorder, study)
        name = f"{work.name}.{study.study_name}"  # another search of these settings has a folder of its own
        if remaining(settings, study):
            with connected(settings.ray, cpus=settings.search.concurrent, whole_gpus=False):
                errors = _search(settings, study, f"{settings.ray.storage}/{name}", recorder)
            check(settings, study, storage, errors)
        _write(settings, study)
        table = settings.root / "search" / "trials.csv"
        recorder.keep(study.study_name, table.name, table.read_text(encoding="utf-8"))
    if in_checkout(settings.root):  # what a job leaves is taken by the stage that runs here after it
        discard(settings.ray.storage, name)
        finish_study(study)  # last: a stage that is killed before goes on with this study, and clears up then


def describe(settings: Settings) -> Work:
    """The name and the identity of a study of these settings; how many trials, and where, is part of neither."""
    search, weights = settings.search, weights_digest(settings)
    own = search.model_dump(mode="json", exclude={"trials", "concurrent", "study"})
    known = digests(settings)
    data = {role: {dataset: known[dataset] for dataset in settings.with_role(role)} for role in get_args(Role)}
    used = {role: data[role] for role in ("train", "validate")}
    name = work_name("search", settings, own, settings.adapter, settings.mask, settings.losses, weights, used)
    identity = {
        "seed": settings.seed,
        "crop": settings.crop,
        "backbone": [settings.backbone.model_dump(mode="json"), weights],
        "adapter": settings.adapter.model_dump(mode="json", exclude={"cache"}),
        "mask": settings.mask,
        "losses": settings.losses,
        "search.frames": search.frames,
        "search.optimisation": search.optimisation,
        "search.space": search.space,
        SECOND_OBJECTIVE: search.second_objective and search.second_objective.name,
        "data": used,
    }
    return Work(name, identity, data)


def start_run(settings: Settings, study: optuna.Study, recorder: Recorder) -> None:
    """Begin the search's run, below which each trial has its own, or go on with it."""
    parameters = {"search": settings.search.model_dump(mode="json"), "seed": settings.seed}
    tags = {"stage": "search", "study": study.study_name, **lineage(settings, digests(settings))}
    recorder.start(study.study_name, "search", parameters, tags)


def _search(settings: Settings, study: optuna.Study, folder: str, recorder: Recorder) -> Sequence[Exception]:
    """Run what is left of a study's trials; `folder` is for their work in progress.

    Returns:
        Why processes of trials were given up.
    """
    tables = share_tables(settings)
    trainable = tune.with_parameters(TrialRun, settings=settings, tables=tables, work=folder)
    errors: Sequence[Exception] = run_trials(trainable, settings, study, folder, recorder).errors
    return errors


def share_tables(settings: Settings) -> Tables | None:
    """The frames of all trials, decoded once; None where each process has to read its own."""
    tables = load_tables(settings)
    frames, validation = share(tables, partial(fetch_data, settings))
    return (frames, validation) if shared(frames) and shared(validation) else None


def check(settings: Settings, study: optuna.Study, storage: BaseStorage, errors: Sequence[Exception]) -> None:
    """Raise the first error where no trial came to its end; a study in which nothing succeeded is not kept.

    Args:
        settings: how many trials there should be.
        study: after its trials.
        storage: of the study.
        errors: why processes of trials were given up.

    Raises:
        UserError: Ctrl-C stopped the trials; what the first that failed found, or that its process died.
        Exception: of Ray's, which shows where in the code it failed.
    """
    if left := remaining(settings, study):
        raise UserError(
            f"the search stopped with {left} trials to go: run the stage again, and it goes on from there."
        )
    failed = [trial for trial in own_trials(study) if trial.state is TrialState.FAIL]
    mistakes = [trial.user_attrs["error"] for trial in failed if "error" in trial.user_attrs]
    died = [(str(error).strip() or repr(error)).splitlines()[-1] for error in errors]  # the end of a stack trace
    if complete(study):
        if failed:
            first = (*mistakes, *died, "its process died")[0]
            STDERR.print(
                f"{len(failed)} trials of the search failed; the first: {first}", markup=False, highlight=False
            )
        return
    optuna.delete_study(study_name=study.study_name, storage=storage)
    if mistakes:
        raise UserError(f"all {len(failed)} trials of the search failed; the first: {mistakes[0]}")
    if errors and not isinstance(errors[0], RayActorError):
        raise errors[0]
    raise UserError(
        "the processes of all trials of the search died, as where memory runs out: lower search.concurrent, "
        "search.optimisation.batch_size or the ranks of search.space."
    )


def _write(settings: Settings, study: optuna.Study) -> None:
    """The point that is taken, and one line for each trial and each epoch."""
    folder, search = settings.root / "search", settings.search
    folder.mkdir(exist_ok=True)
    table = trials_table(study, settings.searched, search)
    table.to_csv(folder / "trials.csv", index=False)
    epochs_table(study).to_csv(folder / "epochs.csv", index=False)
    chosen, states = chosen_trial(study, search), table["state"]
    found = Hyperparameters.of(chosen.params, settings.losses, settings.searched)
    best: dict[str, Any] = {
        "hyperparameters": asdict(found),
        "score": chosen.values[0],
        "trial": chosen.number,
        "trials": len(table),
        "stopped": int((states == "PRUNED").sum()),
        "failed": int((states == "FAIL").sum()),
        "median_score": float(table.loc[states == "COMPLETE", "score"].median()),
        "datasets": settings.with_role("validate"),
        "study": study.study_name,
    }
    if search.second_objective is not None:
        best["second_objective"] = {**search.second_objective.model_dump(), "value": chosen.values[1]}
        best["front"] = front(study)
    (folder / "best.json").write_text(json.dumps(best, indent=2) + "\n")
    STDERR.print(f"search: best of {len(table)} trials {chosen.values[0]:.3f} with {chosen.params}", highlight=False)


if __name__ == "__main__":
    run_stage(main)
