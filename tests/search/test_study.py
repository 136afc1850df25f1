"""The study: what it knows after a kill, what an earlier one teaches, and what is chosen."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from masm.errors import UserError
from masm.search import (
    SECOND_OBJECTIVE,
    Work,
    chosen_trial,
    epochs_table,
    finish_study,
    front,
    make_sampler,
    open_study,
    own_trials,
    record_epochs,
    sole_driver,
    study_name,
    study_storage,
    suggest,
    trials_table,
    unfinished,
)
from masm.search.sampling import STARTUP
from masm.settings import Role, Settings, load_settings
from pipelines.search import check
from tests.test_settings import write

DATA: dict[Role, dict[str, str]] = {"train": {"swap": "a"}, "validate": {"selfblend": "b"}, "test": {"upsample": "c"}}
WORK = Work("search-0123456789ab", {"seed": 0, "data": {"swap": "a"}}, DATA)
FORMER = [
    {"rank": 16, "subspaces": 4, "mask_threshold": 0.3911958047986411, "lambda_orth": 0.011939653980558813},
    {"rank": 16, "subspaces": 4, "mask_threshold": 0.32149561444175023, "lambda_orth": 0.005779393515080472},
    {"rank": 16, "subspaces": 4, "mask_threshold": 0.3724824078756087, "lambda_orth": 0.0011214978751978735},
    {"rank": 8, "subspaces": 4, "mask_threshold": 0.05326777830370007, "lambda_orth": 0.011138460302090526},
]
SPEC = [0.010051732611851693, 0.0013547922193823184, 0.01588904645993247, 0.03168252003710077]
"""The demo's points when Ray's OptunaSearch drew them from a static space."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASM_STUDY_STORAGE", raising=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def settings_of(folder: Path, **changes: Any) -> Settings:
    """The shipped settings with a storage of their own."""
    plain = {key.replace("__", "."): value for key, value in changes.items()}
    return load_settings(write(folder, {"ray.storage": str(folder / "ray"), **plain}))


def opened(settings: Settings, work: Work = WORK) -> optuna.Study:
    storage = study_storage(settings)
    return open_study(settings, storage, work, study_name(settings, storage, work))


def ask(study: optuna.Study, settings: Settings) -> tuple[optuna.Trial, dict[str, Any]]:
    trial = study.ask()
    return trial, suggest(trial, settings.search.space, settings.searched)


def run(study: optuna.Study, settings: Settings, scores: list[float], epochs: int = 2) -> optuna.Trial:
    """A trial with these scores of its epochs; it is complete with `epochs` of them."""
    trial, _ = ask(study, settings)
    record_epochs(trial, [line(epoch + 1, score) for epoch, score in enumerate(scores)])
    whole = len(scores) == epochs
    study.tell(trial, scores[-1] if whole else None, state=None if whole else optuna.trial.TrialState.PRUNED)
    return trial


def line(epoch: int, score: float) -> dict[str, float]:
    return {"epoch": epoch, "loss": 1 / epoch, "val_auc": 0.5, "score": score, "seconds": 2.0}


def test_the_demo_draws_the_points_that_it_always_drew(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    study = opened(settings)
    points = [ask(study, settings)[1] for _ in range(settings.search.trials)]
    assert points == [point | {"lambda_spec": spec} for point, spec in zip(FORMER, SPEC, strict=True)]


def test_a_study_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    study = opened(settings)
    run(study, settings, [0.5, 0.6])
    trial, point = ask(study, settings)
    record_epochs(trial, [line(1, 0.4)])
    again = opened(settings)
    assert again.study_name == WORK.name
    assert [known.state.name for known in own_trials(again)] == ["COMPLETE", "RUNNING"]
    (left,) = unfinished(again)
    resumed = optuna.Trial(again, left._trial_id)
    assert suggest(resumed, settings.search.space, settings.searched) == point
    record_epochs(resumed, [line(1, 0.9), line(2, 0.7)])  # what was known of epoch 1 stays
    again.tell(resumed, 0.7)
    table = epochs_table(again)
    assert table.columns.tolist() == ["trial", "epoch", "score", "loss", "val_auc", "seconds"]
    assert table[["trial", "epoch", "score"]].values.tolist() == [[0, 1, 0.5], [0, 2, 0.6], [1, 1, 0.4], [1, 2, 0.7]]
    assert own_trials(again)[1].intermediate_values == {1: 0.4, 2: 0.7}


def test_a_search_that_goes_on_does_not_draw_its_first_points_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    points = []
    for _ in range(4):
        study = opened(settings)
        trial, point = ask(study, settings)
        study.tell(trial, 0.5)
        points.append(json.dumps(point))
    assert len(set(points)) == 4


def test_a_search_that_has_ended_is_kept_and_the_next_begins_anew(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    names = []
    for _ in range(3):
        study = opened(settings)
        names.append(study.study_name)
        finish_study(study)
    assert names == [WORK.name, f"{WORK.name}-2", f"{WORK.name}-3"]
    named = settings_of(tmp_path, search__study={"name": "mine"})
    finish_study(opened(named))
    assert opened(named).study_name == "mine"


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, search__study={"name": "mine"})
    opened(settings)
    other = Work(WORK.name, {"seed": 1, "data": {"swap": "b"}}, DATA)
    with pytest.raises(UserError) as caught:
        opened(settings, other)
    assert "the study mine was made with other data and seed" in str(caught.value)
    assert "set another search.study.name" in str(caught.value)
    opened(settings)  # it is as it was


def test_two_stages_do_not_run_one_study(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    study, storage = opened(settings).study_name, study_storage(settings)
    with sole_driver(study, storage):
        with pytest.raises(UserError, match=f"another stage runs the study {study}"), sole_driver(study, storage):
            pass
        with sole_driver("mine", storage):
            pass
    with sole_driver(study, storage):  # the first has ended
        pass


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, search__study={"name": "mine"})
    optuna.create_study(storage=study_storage(settings), study_name="mine", direction="maximize").ask()
    with pytest.raises(UserError, match="the study mine is not masm's"):
        opened(settings)


def test_a_warm_start_teaches_what_lies_in_the_space(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    former = opened(settings)
    inside = [
        trial.number for trial in (run(former, settings, [0.4, 0.5 + 0.01 * n]) for n in range(6))
        if trial.params["mask_threshold"] <= 0.3
    ]  # fmt: skip
    assert 0 < len(inside) < 6
    narrow = settings_of(tmp_path, search__warm_start=WORK.name, search__space__mask_threshold__upper=0.3)
    for _ in range(2):  # a search that goes on has learnt already
        study = opened(narrow, Work("search-later", {"seed": 0}, DATA))
        learnt = [trial for trial in study.trials if trial not in own_trials(study)]
        assert [trial.user_attrs["warm_start"] for trial in learnt] == [[WORK.name, number] for number in inside]
    assert own_trials(study) == []
    assert [trial.value for trial in learnt] == [former.trials[number].value for number in inside]
    assert [trial.params for trial in learnt] == [former.trials[number].params for number in inside]
    assert learnt[0].distributions["mask_threshold"] == optuna.distributions.FloatDistribution(0.0, 0.3)
    assert trials_table(study, narrow.searched, narrow.search).empty


def test_a_warm_start_needs_something_to_learn_from(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    former = opened(settings)
    missing = settings_of(tmp_path, search__warm_start="mine")
    with pytest.raises(UserError, match=f"the storage has no study mine; it has {WORK.name}"):
        opened(missing, Work("a", {}, DATA))
    run(former, settings, [0.1, 0.2])
    elsewhere = {"type": "choice", "values": [3]}
    outside = settings_of(tmp_path, search__warm_start=WORK.name, search__space__rank=elsewhere)
    with pytest.raises(UserError, match=r"none of the 1 trials of search-0123456789ab lies in search\.space"):
        opened(outside, Work("b", {}, DATA))
    fast, small = ({SECOND_OBJECTIVE: name} for name in ("latency_ms", "trainable_parameters"))
    two = settings_of(tmp_path, search__second_objective={"name": "latency_ms"})
    opened(two, Work("two", fast, DATA))
    for teacher, identity in ((WORK.name, fast), ("two", small)):
        second = {"name": identity[SECOND_OBJECTIVE]}
        taught = settings_of(tmp_path, search__warm_start=teacher, search__second_objective=second)
        with pytest.raises(UserError, match=f"the study {teacher} has other objectives"):
            opened(taught, Work(f"taught by {teacher}", identity, DATA))
    # What was refused left no study, which would be held to the settings that the words advise to change.
    assert sorted(optuna.get_all_study_names(study_storage(settings))) == [WORK.name, "two"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"validate": {"x": "d"}, "test": {"selfblend": "e"}}, "scored on selfblend, which is test data now"),
        ({"validate": {"x": "d"}, "test": {"renamed": "b"}}, "scored on selfblend, which is test data now"),
        ({"train": {"z": "z"}, "test": {"x": "a"}}, "trained or scored on swap, which is test data now"),
        ({"validate": {"selfblend": "e"}}, r"other data \(selfblend\) than the validate datasets"),
        ({"validate": {"selfblend": "b", "more": "e"}}, "other data"),
        ({"validate": {"renamed": "b"}, "train": {"swap": "e"}}, ""),
    ],
)
def test_a_warm_start_knows_nothing_of_test_data(tmp_path: Path, data: dict[Role, Any], says: str) -> None:
    settings = settings_of(tmp_path)
    run(opened(settings), settings, [0.1, 0.2])
    later, work = settings_of(tmp_path, search__warm_start=WORK.name), Work("later", {}, {**DATA, **data})
    if says:
        with pytest.raises(UserError, match=says):
            opened(later, work)
    else:
        assert len(opened(later, work).trials) == 1


def test_a_warm_start_from_a_study_that_does_not_say_its_data_is_refused(tmp_path: Path) -> None:
    later = settings_of(tmp_path, search__warm_start="mine")
    optuna.create_study(storage=study_storage(later), study_name="mine", direction="maximize")
    with pytest.raises(UserError, match="mine does not say on which data"):
        opened(later)


def test_stopped_and_failed_trials_are_shown_but_not_chosen(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    study = opened(settings)
    run(study, settings, [0.4, 0.6])
    run(study, settings, [0.9])  # stopped after one epoch, whatever its score was
    trial, _ = ask(study, settings)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    run(study, settings, [0.5, 0.55])
    table = trials_table(study, settings.searched, settings.search)
    assert table.columns.tolist() == ["trial", "state", "epochs", "score", *settings.searched, "seconds"]
    assert table["state"].tolist() == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert table["epochs"].tolist() == [2, 1, 0, 2]
    assert table["seconds"].tolist() == [4, 2, 0, 4]
    np.testing.assert_array_equal(table["score"], [0.6, 0.9, math.nan, 0.55])
    assert chosen_trial(study, settings.search).number == 0
    assert study.best_trial.number == 0


def two_objectives(folder: Path, tolerance: float) -> tuple[Settings, optuna.Study, np.ndarray]:
    """A study of 40 random trials, and their (score, cost)."""
    second = {"name": "trainable_parameters", "tolerance": tolerance}
    settings = settings_of(folder, search__second_objective=second)
    study = opened(settings, Work("two", {}, DATA))
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    values = np.random.default_rng(3).integers(0, 12, (40, 2)) / 12  # with ties
    for score, cost in values.tolist():
        trial, _ = ask(study, settings)
        record_epochs(trial, [line(1, 0.1), line(2, score)])
        study.tell(trial, [score, cost])
    return settings, study, values


def test_the_front_is_that_of_optuna_and_of_brute_force(tmp_path: Path) -> None:
    settings, study, values = two_objectives(tmp_path, 0.1)
    expected = [
        index
        for index, (score, cost) in enumerate(values)
        if not np.any(
            (values[:, 0] >= score) & (values[:, 1] <= cost) & ((values[:, 0] > score) | (values[:, 1] < cost))
        )
    ]
    assert front(study) == expected
    assert sorted(front(study)) == sorted(trial.number for trial in study.best_trials)
    table = trials_table(study, settings.searched, settings.search)
    np.testing.assert_allclose(table[["score", "trainable_parameters"]], values)


@pytest.mark.parametrize("tolerance", [0, 0.1, 0.3, 2])
def test_of_the_trials_about_as_good_the_cheapest_is_taken(tmp_path: Path, tolerance: float) -> None:
    settings, study, values = two_objectives(tmp_path, tolerance)
    good = values[values[:, 0] >= values[:, 0].max() - tolerance]
    cheapest = good[good[:, 1] == good[:, 1].min()]
    chosen = chosen_trial(study, settings.search)
    assert chosen.values == [cheapest[:, 0].max(), cheapest[0, 1]]
    assert chosen.number in front(study)


def test_samplers_take_conditional_spaces(tmp_path: Path) -> None:
    kinds = {"type": "choice", "values": ["none", "adaptive"]}
    threshold = {"type": "uniform", "lower": 0, "upper": 0.4, "when": {"mask_kind": ["adaptive"]}}
    for sampler in ("tpe", "gp"):
        settings = settings_of(
            tmp_path,
            search__sampler=sampler,
            search__space__mask_kind=kinds,
            search__space__mask_threshold=threshold,
            mask__kind=None,
            compare={},
        )
        study = optuna.create_study(direction="maximize", sampler=make_sampler(settings, 0))
        for _ in range(14):  # past the random ones
            trial, point = ask(study, settings)
            assert ("mask_threshold" in point) == (point["mask_kind"] == "adaptive")
            study.tell(trial, float(point["mask_kind"] == "adaptive") - point.get("mask_threshold", 0))


def test_no_point_is_tried_again_while_there_are_others(tmp_path: Path) -> None:
    ranges: dict[str, Any] = {
        "rank": {"type": "choice", "values": [4, 8, 16]},
        "subspaces": {"type": "choice", "values": [1, 2, 4]},
        "mask_kind": {"type": "choice", "values": ["none", "adaptive"]},
        "mask_threshold": {"type": "choice", "values": [0.1, 0.2], "when": {"mask_kind": ["adaptive"]}},
        "lambda_orth": {"type": "choice", "values": [0.01]},
        "lambda_spec": {"type": "choice", "values": [0.01]},
    }
    settings = load_settings(
        write(tmp_path, {"search.space": ranges, "mask.kind": None, "compare": {}, "ray.storage": str(tmp_path)})
    )

    def repeats(sampler: optuna.samplers.BaseSampler, first: int, trials: int = 24) -> int:
        """Trials that repeat a point, of 27 different ones, after the `first` ones, which are drawn at random."""
        study, tried, again = optuna.create_study(direction="maximize", sampler=sampler), [], 0
        for number in range(trials):
            trial, point = ask(study, settings)
            again += number >= first and point in tried
            tried.append(point)
            study.tell(trial, point["rank"] / 16 - point.get("mask_threshold", 0))
        return again

    assert repeats(optuna.samplers.TPESampler(seed=0, multivariate=True), first=10) > 0
    for seed in range(5):
        assert repeats(make_sampler(settings, seed), first=STARTUP) == 0
    assert repeats(make_sampler(settings, 0), STARTUP, trials=40) > 0  # all were tried: it goes on all the same


@pytest.mark.parametrize("seed", range(6))
def test_a_trial_that_was_cut_short_while_it_drew_becomes_no_point_that_was_tried(tmp_path: Path, seed: int) -> None:
    names, values = ("rank", "subspaces", "mask_threshold", "lambda_orth", "lambda_spec"), [1, 2, 4]
    ranges = {name: {"type": "choice", "values": values if name in names[:2] else [0.1]} for name in names}
    settings = settings_of(tmp_path, search__space=ranges, seed=seed)
    study = opened(settings)
    free = [(1, 1), (2, 4)]
    for rank in values:
        for subspaces in values:
            if (rank, subspaces) not in free:
                study.enqueue_trial({"rank": rank, "subspaces": subspaces})
                trial, point = ask(study, settings)
                assert (point["rank"], point["subspaces"]) == (rank, subspaces)
                study.tell(trial, 0.5)
    begun = study.ask().suggest_categorical("rank", values)
    again = opened(settings)
    (left,) = unfinished(again)
    point = suggest(optuna.Trial(again, left._trial_id), settings.search.space, settings.searched)
    assert point["rank"] == begun
    assert (point["rank"], point["subspaces"]) in free


def test_the_storage_is_sqlite_in_the_storage_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    opened(settings)
    with sqlite3.connect(tmp_path / "ray" / "studies.db") as database:
        assert database.execute("select study_name from studies").fetchall() == [(WORK.name,)]
    monkeypatch.setenv("MASM_STUDY_STORAGE", f"sqlite:///{tmp_path}/other.db")
    opened(settings)
    assert (tmp_path / "other.db").is_file()
    monkeypatch.setenv("MASM_STUDY_STORAGE", "sqlite:///relative.db")
    opened(settings)
    assert (tmp_path / "relative.db").is_file()  # seen from params.yaml's folder, as MLflow's is
    assert load_settings(tmp_path / "params.yaml").search.study.storage is None  # a password would be recorded


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:secret@127.0.0.1:9/none", "postgresql://127.0.0.1:9/none cannot be used"),
        ("postgresql://me:se@cret@:bad/none", "cannot be used"),
        ("sqlite:////dev/null/all.db", "cannot be used"),
        ("oracel://me:secret@host/none", "oracel://host/none cannot be used"),
        ("postgresql://me:/secret@127.0.0.1:9/none", "postgresql://127.0.0.1:9/none cannot be used"),
        ("postgresql://127.0.0.1:9/none?password=secret", "postgresql://127.0.0.1:9/none cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_used_is_said_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, says: str
) -> None:
    monkeypatch.setenv("MASM_STUDY_STORAGE", url)
    with pytest.raises(UserError) as caught:
        study_storage(settings_of(tmp_path))
    message = str(caught.value)
    assert says in message
    assert "MASM_STUDY_STORAGE" in message
    assert "cret" not in message
    assert "\n" not in message


def test_a_storage_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ray\.storage \(/dev/null/x\) cannot be made \(Not a directory\): set it"):
        study_storage(load_settings(write(tmp_path, {"ray.storage": "/dev/null/x"})))


def test_a_bucket_holds_no_sqlite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set MASM_STUDY_STORAGE"):
        study_storage(load_settings(write(tmp_path, {"ray.storage": "s3://bucket/ray"})))


def test_all_trials_failing_is_said_once_and_leaves_no_study(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, search__trials=3)
    study, storage = opened(settings), study_storage(settings)
    for number in range(3):
        trial, _ = ask(study, settings)
        trial.set_user_attr("error", f"the loss of {number} is nan: lower it.")
        if number == 1:
            with pytest.raises(UserError, match="the search stopped with 2 trials to go: run the stage again"):
                check(settings, study, storage, [])
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(UserError) as caught:
        check(settings, study, storage, [])
    assert str(caught.value) == "all 3 trials of the search failed; the first: the loss of 0 is nan: lower it."
    assert optuna.get_all_study_names(storage) == []


def test_a_bug_in_all_trials_shows_where_it_is(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, search__trials=1)
    study = opened(settings)
    trial, _ = ask(study, settings)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    with pytest.raises(ZeroDivisionError):
        check(settings, study, study_storage(settings), [ZeroDivisionError("bug")])
