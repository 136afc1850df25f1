"""What a stage records comes to MLflow, once, whoever dies in between."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from masm.settings import Mlflow, load_settings
from masm.tracking import Recorder, journal_path, journal_roots, send_unsent, stage_recorder, unsent
from masm.tracking.journal import Journal, read_entries
from masm.tracking.sender import Sender
from masm.tracking.store import address, is_away, open_experiment
from tests.conftest import ROOT
from tests.mlflow_server import Proxy, Server
from tests.test_settings import write
from tests.tracking.recording import GRACE, KEY, figures, mlflow_at, record
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def mlflow(server: Server, request: pytest.FixtureRequest) -> Mlflow:
    """The server, with an experiment for each test."""
    at_server = mlflow_at(f"http://127.0.0.1:{server.port}")
    return at_server.model_copy(update={"experiment": request.node.name})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setattr("masm.tracking.recorder.GRACE", GRACE)


def runs(mlflow: Mlflow) -> list[Run]:
    """All runs of the experiment, the first one first."""
    client = MlflowClient(mlflow.tracking_uri)
    experiment = client.get_experiment_by_name(mlflow.experiment)
    if experiment is None:
        return []
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])


def points(mlflow: Mlflow, run: Run, metric: str) -> list[tuple[int, float]]:
    """What MLflow has of a metric: each point, also one that is there twice."""
    history = MlflowClient(mlflow.tracking_uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def check_whole(mlflow: Mlflow, epochs: int) -> None:
    """One run, that ended well, with each epoch's figures once."""
    (run,) = runs(mlflow)
    assert (run.info.run_name, run.info.status) == ("train", "FINISHED")
    assert run.data.params == {"train.lr": "0.1"}
    for name in ("loss", "val_auc"):
        assert points(mlflow, run, name) == [(epoch, figures(epoch)[name]) for epoch in range(1, epochs + 1)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a journal of five epochs, which nobody has sent."""
    root = tmp_path_factory.mktemp("recorded")
    with Recorder(mlflow_at("http://127.0.0.1:9"), journal_path(root, KEY), patience=0) as recorder:
        recorder.start(KEY, "train", {"train": {"lr": 0.1}}, {"stage": "train"})
        for epoch in range(1, 6):
            recorder.log(KEY, figures(epoch), epoch)
    return journal_path(root, KEY).read_text().splitlines(keepends=True)


def write_journal(root: Path, recorded: list[str], epochs: int = 3) -> Path:
    """Leave a journal of some epochs."""
    journal = journal_path(root, KEY)
    journal.parent.mkdir(parents=True)
    journal.write_text("".join([*recorded[: 1 + epochs], recorded[-1]]))
    return journal


def test_runs_are_nested_and_have_settings_tags_figures_and_files(mlflow: Mlflow, tmp_path: Path) -> None:
    with Recorder(mlflow, journal_path(tmp_path, "search-1")) as recorder:
        recorder.start("search-1", "search", {"search": {"trials": 2, "space": {"rank": [2]}}}, {"stage": "search"})
        recorder.start("search-1/0", "trial 0", {"lr": 0.5}, {}, parent="search-1")
        recorder.log("search-1/0", {"score": 0.25, "undefined": float("nan")}, 1)
        recorder.log("search-1/0", {"score": 0.75}, 2)
        recorder.finish("search-1/0", "KILLED", {"state": "PRUNED"})
        recorder.keep("search-1", "trials.csv", "trial,score\n0,0.75\n")
    parent, trial = sorted(runs(mlflow), key=lambda run: run.info.run_name)
    assert parent.data.params == {"search.trials": "2", "search.space.rank": "[2]"}
    assert (parent.data.tags["stage"], parent.info.status) == ("search", "FINISHED")
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (trial.data.params, trial.info.status) == ({"lr": "0.5"}, "KILLED")
    assert trial.data.tags["state"] == "PRUNED"
    assert points(mlflow, trial, "score") == [(1, 0.25), (2, 0.75)]
    assert set(trial.data.metrics) == {"score"}
    (kept,) = MlflowClient(mlflow.tracking_uri).list_artifacts(parent.info.run_id)
    assert kept.path == "trials.csv"
    assert unsent(tmp_path) == []


def test_a_stage_that_fails_leaves_failed_runs(mlflow: Mlflow, tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), Recorder(mlflow, journal_path(tmp_path, KEY)) as recorder:
        recorder.start(KEY, "train", {}, {})
        raise ZeroDivisionError
    assert [run.info.status for run in runs(mlflow)] == ["FAILED"]


def test_the_link_is_said_when_the_run_begins(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    write_journal(tmp_path, recorded)
    send_unsent(mlflow, tmp_path)
    (run,) = runs(mlflow)
    link = f"MLflow run: {mlflow.tracking_uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert link in capfd.readouterr().err.splitlines()


@pytest.mark.slow
def test_server_stopped_and_started_again_in_the_middle(server: Server, mlflow: Mlflow, tmp_path: Path) -> None:
    waits = []
    with Recorder(mlflow, journal_path(tmp_path, KEY), patience=60) as recorder:
        recorder.start(KEY, "train", {"train": {"lr": 0.1}}, {"stage": "train"})
        for epoch in range(1, 31):
            if epoch == 11:
                server.kill()
            if epoch == 21:
                server.start()
            began = time.perf_counter()
            recorder.log(KEY, figures(epoch), epoch)
            waits.append(time.perf_counter() - began)
            time.sleep(0.1)
    assert sorted(waits)[-2] < 1  # a stage never waits for the server, whose connections take seconds to fail
    check_whole(mlflow, 30)
    assert unsent(tmp_path) == []


@pytest.mark.slow
def test_a_recording_process_that_is_killed_at_any_time_leaves_each_point_once(mlflow: Mlflow, tmp_path: Path) -> None:
    mlflow = mlflow.model_copy(update={"experiment": "tracking"})
    command = [sys.executable, "-m", "tests.tracking.recording", mlflow.tracking_uri, str(tmp_path)]
    journal = journal_path(tmp_path, KEY)

    def starts() -> int:
        return sum(entry is not None and "start" in entry for entry, _ in read_entries(journal, 0))

    for number, seconds in enumerate((0.1, 4.0)):
        stage = subprocess.Popen([*command, "200", "0.05"], cwd=ROOT)
        wait_for("the stage's start", lambda: starts() > number, process=stage)  # noqa: B023
        time.sleep(seconds)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    # The sender outlives the stage, and says so.
    wait_for("the killed run's end", lambda: [run.info.status for run in runs(mlflow)] == ["KILLED"])
    assert subprocess.run([*command, "200", "0"], cwd=ROOT, check=False).returncode == 0
    check_whole(mlflow, 200)


def test_a_lost_answer_at_any_request_doubles_nothing(
    server: Server, mlflow: Mlflow, tmp_path: Path, recorded: list[str]
) -> None:
    """By a sender that goes on, and by one that starts anew, as after a kill between sending and noting it."""
    proxy = Proxy(server.port)
    behind = mlflow.model_copy(update={"tracking_uri": f"http://127.0.0.1:{proxy.server_address[1]}"})
    try:
        journal, experiment = write_journal(tmp_path, recorded), open_experiment(behind)
        proxy.lose(None)
        sender = Sender(journal)
        sender.send(experiment)
        sender.close()
        changes = len(proxy.changes)
        assert changes > 5
        for number, reaches in product(range(changes), (False, True)):
            name = {"experiment": f"{mlflow.experiment} {number} {reaches}"}
            sender, experiment = Sender(journal), open_experiment(behind.model_copy(update=name))
            proxy.lose(number, reaches)
            with pytest.raises(MlflowException) as lost:
                sender.send(experiment)
            assert is_away(lost.value)
            proxy.lose(None)
            if reaches:
                sender.close()
                sender = Sender(journal)
            sender.send(experiment)
            sender.close()
            check_whole(mlflow.model_copy(update=name), 3)
    finally:
        proxy.shutdown()


def test_a_stage_whose_journal_is_lost_goes_on_with_its_run(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str]
) -> None:
    for epochs in (3, 5):
        Sender(write_journal(tmp_path / str(epochs), recorded, epochs)).send(open_experiment(mlflow))
    check_whole(mlflow, 5)


@pytest.mark.parametrize("until", [4, 5])
def test_a_journal_without_room_ends_no_stage(tmp_path: Path, until: int) -> None:
    uri, arguments = f"sqlite:///{tmp_path}/mlflow.db", f"sys.argv[1], Path(sys.argv[2]), {until}"
    code = f"import sys; from tests.tracking.recording import *; record_without_room({arguments})"
    command = [sys.executable, "-c", code, uri, str(tmp_path)]
    stage = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert stage.stderr.count("cannot be written (File too large): free some space there") == 1
    if until > 4:  # there was none in the end: the stage is run again
        record(uri, tmp_path, epochs=4, seconds=0)
    check_whole(mlflow_at(uri), 4)


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_away_or_hangs_holds_no_stage_up(
    mlflow: Mlflow,
    tmp_path: Path,
    answers: bool,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        port = silent.getsockname()[1]
        if not answers:
            silent.close()
        away = mlflow.model_copy(update={"tracking_uri": f"http://user:secret@127.0.0.1:{port}"})
        began = time.monotonic()
        with Recorder(away, journal_path(tmp_path, KEY), patience=1) as recorder:
            recorder.start(KEY, "train", {"train": {"lr": 0.1}}, {"stage": "train"})
            recorder.log(KEY, figures(1), 1)
        assert time.monotonic() - began < 1 + GRACE  # the sender ended by itself
    said = capfd.readouterr().err
    (journal,) = unsent(tmp_path)
    assert said.count("does not answer") == 1
    assert f"the next run, or `promote`, sends the rest, from {journal}" in said
    assert "secret" not in said
    send_unsent(mlflow, tmp_path)
    check_whole(mlflow, 1)
    assert unsent(tmp_path) == []


def test_a_job_leaves_its_journal_where_promote_finds_it(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.tracking_uri)
    changes = {"ray.storage": str(tmp_path / "ray"), "mlflow.experiment": mlflow.experiment}
    for name in ("here", "job"):
        (tmp_path / name).mkdir()
    here, job = (load_settings(write(tmp_path / name, changes)) for name in ("here", "job"))
    (here.root / ".git").mkdir()
    assert stage_recorder(here, KEY).journal == journal_path(here.root, KEY)
    journal = stage_recorder(job, KEY).journal
    journal.parent.mkdir(parents=True)
    journal.write_text("".join([*recorded[:3], recorded[-1]]))
    shutil.rmtree(job.root)
    send_unsent(here.mlflow, *journal_roots(here))
    check_whole(mlflow, 2)
    assert unsent(*journal_roots(here)) == []


def test_a_job_whose_journal_is_lost_waits_longer_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    lost, kept = (
        stage_recorder(load_settings(write(tmp_path, {"ray.storage": storage})), KEY)
        for storage in ("s3://bucket/ray", "ray")
    )
    assert lost.patience > kept.patience
    lost.patience = 3
    with lost:
        lost.start(KEY, "train", {}, {})
    said = capfd.readouterr().err
    assert "Connection refused" in said.splitlines()[-1]
    assert f"): the rest is lost with this job's folder, {lost.journal}" in said
    assert "the next run" not in said


def test_a_store_of_artifacts_that_takes_nothing_is_said_with_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    own = {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": str(tmp_path / "file")}
    with Recorder(mlflow_at("").model_copy(update=own), journal_path(tmp_path, KEY), patience=3) as recorder:
        recorder.start(KEY, "train", {}, {})
        recorder.keep(KEY, "history.csv", "epoch")
    said = capfd.readouterr().err
    (journal,) = unsent(tmp_path)
    assert "is in MLflow ([Errno 20] Not a directory" in said.replace(
        "[Errno 17] File exists", "[Errno 20] Not a directory"
    )
    assert f"sends the rest, from {journal}" in said


def test_the_next_stage_sends_what_the_former_could_not(mlflow: Mlflow, tmp_path: Path, recorded: list[str]) -> None:
    write_journal(tmp_path, recorded)
    with Recorder(mlflow, journal_path(tmp_path, "another")) as recorder:
        recorder.start("another", "another", {}, {})
    assert sorted(run.info.run_name for run in runs(mlflow)) == ["another", "train"]
    assert unsent(tmp_path) == []


def test_what_mlflow_refuses_is_said_and_kept(
    mlflow: Mlflow, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Recorder(mlflow, journal_path(tmp_path, KEY)) as recorder:
        recorder.start(KEY, "train", {}, {})
        recorder.log(KEY, {"no*name": 1.0}, 1)
    said = capfd.readouterr().err
    (journal,) = unsent(tmp_path)
    assert "refuses what is recorded (" in said
    assert "Invalid value" in said
    assert f"it stays in {journal}" in said


def test_a_sender_that_dies_is_said(mlflow: Mlflow, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Recorder(mlflow, journal_path(tmp_path, KEY)) as recorder:
        recorder._sender.kill()
        recorder._sender.wait()
        recorder.start(KEY, "train", {}, {})
    (journal,) = unsent(tmp_path)
    said = f"Not all that was recorded is in MLflow: the next run, or `promote`, sends the rest, from {journal}"
    assert capfd.readouterr().err.splitlines() == [said]


@pytest.mark.parametrize("file", ["train.jsonl", ".lock"])
def test_a_journal_whose_files_cannot_be_used_is_said_and_stays(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str], file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """That it cannot be opened, and that it cannot be removed; the others are sent all the same."""
    whole = write_journal(tmp_path / "whole", recorded)
    broken = journal_path(tmp_path / "broken", "train")
    (broken.parent / file).mkdir(parents=True)  # which binds root too
    if file == ".lock":
        shutil.copyfile(whole, broken)
    send_unsent(mlflow, tmp_path / "broken", tmp_path / "whole")
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("MLflow run: ")]
    assert said == [f"the journal {broken} cannot be used (Is a directory): it stays"]
    check_whole(mlflow, 3)
    assert unsent(tmp_path / "broken", tmp_path / "whole") == [broken]


def test_an_old_journal_does_not_undo_a_newer_end(mlflow: Mlflow, tmp_path: Path, recorded: list[str]) -> None:
    journal, experiment = write_journal(tmp_path, recorded), open_experiment(mlflow)
    first, second = Sender(journal), Sender(journal)
    first.send(experiment)
    first.close()
    *lines, last = (json.loads(line) for line in recorded[:3])
    killed = {"finish": KEY, "status": "KILLED", "time": last["time"] - 1}
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in (*lines, killed)))
    second.send(experiment)
    second.close()
    assert second.whole
    check_whole(mlflow, 3)


def test_a_journal_on_nfs_is_sent(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masm.tracking.journal.fcntl.flock", fcntl.lockf)  # what NFS makes of it
    sender = Sender(write_journal(tmp_path, recorded))
    sender.send(open_experiment(mlflow))
    sender.close()
    check_whole(mlflow, 3)


def test_one_process_sends_a_journal(mlflow: Mlflow, tmp_path: Path, recorded: list[str]) -> None:
    journal, experiment = write_journal(tmp_path, recorded), open_experiment(mlflow)
    first, second = Sender(journal), Sender(journal)
    first.send(experiment)
    second.send(experiment)
    assert (first.whole, second.whole) == (True, False)
    first.close()
    second.send(experiment)
    second.close()
    assert second.whole
    (run,) = runs(mlflow)
    assert len(points(mlflow, run, "loss")) == 3


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_stage_begins_again_while_another_sends_its_old_journal(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str], before: int
) -> None:
    """Of the two epochs that are left, `before` are written before the other is done with the journal."""
    path, experiment = write_journal(tmp_path, recorded), open_experiment(mlflow)
    other = Sender(path)
    other.send(experiment)
    journal = Journal(path)
    own = Sender(path, os.dup(journal.descriptor))
    for epoch in (4, 5):
        if epoch == 4 + before:
            other.remove()
            other.close()
            assert path.exists() == (before > 0)
        own.send(experiment)
        journal.write(log=KEY, metrics=figures(epoch), step=epoch)
    if before == 2:
        own.send(experiment)
        assert not own.whole  # the other has it still
        other.remove()
        other.close()
    journal.write(finish=KEY, status="FINISHED")
    journal.close()
    own.send(experiment)
    own.remove()
    own.close()
    check_whole(mlflow, 5)
    assert unsent(tmp_path) == []


def test_a_journal_that_is_removed_before_the_stage_begins_again_is_begun_anew(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str]
) -> None:
    path, experiment = write_journal(tmp_path, recorded), open_experiment(mlflow)
    other, own = Sender(path), Sender(path)
    other.send(experiment)
    own.send(experiment)
    other.remove()
    other.close()
    journal = Journal(path)
    journal.write(log=KEY, metrics=figures(4), step=4)
    journal.write(finish=KEY, status="FINISHED")
    journal.close()
    own.send(experiment)
    own.remove()
    own.close()
    check_whole(mlflow, 4)
    assert unsent(tmp_path) == []


def test_a_stage_that_is_at_work_keeps_its_journal(mlflow: Mlflow, tmp_path: Path) -> None:
    with Recorder(mlflow, journal_path(tmp_path, KEY)) as recorder:
        recorder.start(KEY, "train", {"train": {"lr": 0.1}}, {})
        send_unsent(mlflow, tmp_path)
        for epoch in range(1, 4):
            recorder.log(KEY, figures(epoch), epoch)
    check_whole(mlflow, 3)


def test_two_processes_make_the_experiment_at_the_same_moment(
    mlflow: Mlflow, tmp_path: Path, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MlflowClient.create_experiment
    numbers = []

    def after_another(client: MlflowClient, *arguments: str | None) -> str:
        numbers.append(create(client, *arguments))
        return create(client, *arguments)

    monkeypatch.setattr(MlflowClient, "create_experiment", after_another)
    experiment = open_experiment(mlflow)
    assert [experiment.number] == numbers
    sender = Sender(write_journal(tmp_path, recorded))
    sender.send(experiment)
    sender.close()
    check_whole(mlflow, 3)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://host:5000/x"),
        ("postgresql://me:secret@host/db", "postgresql://host/db"),
        ("postgresql://me:pa/se@host/db", "postgresql://host/db"),
        ("postgresql://me:pa?se@host/db", "postgresql://host/db"),
        ("postgresql://me:pa#se@host/db", "postgresql://host/db"),
        ("postgresql://me:pa@se@host/db", "postgresql://host/db"),
        ("postgresql://me:p@a/se@host/db", "URL"),
        ("postgresql://me:se@:bad/db", "URL"),
        ("postgresql://host/db?password=se&passfile=of&sslpassword=me&user=u", "postgresql://host/db?user=u"),
        ("http://token@host:5000", "http://host:5000"),
        ("http://host:5000/a b", "http://host:5000/a b"),
        ("sqlite:////tmp/a@b.db", "sqlite:////tmp/a@b.db"),
        ("databricks", "databricks"),
    ],
)
def test_no_password_is_shown(uri: str, shown: str) -> None:
    assert address(mlflow_at(uri)) == shown
