"""Ray Train's group of workers: how many, and what a checkpoint is worth whose upload was cut off."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from masm.cluster import connected
from masm.errors import UserError
from masm.settings import Ray
from pipelines.workers import (
    LIST,
    PAUSE,
    Group,
    Reporter,
    discard_run,
    drop_cut,
    load_last,
    report,
    run_workers,
    sole_driver,
)
from tests.http_server import answering

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BYTES = 400_000_000
"""Of a checkpoint: enough that its upload takes a moment."""


HOLD = """
import sys
from pipelines.workers import Group, sole_driver
with sole_driver(Group("train-1", sys.argv[1], 1, 0)):
    print("held", flush=True)
    sys.stdin.read()
"""
"""Another stage at this work, until its input ends."""


def save(folder: Path, epoch: int) -> None:
    """A checkpoint whose large file is stored before the small one, by name."""
    with open(folder / "a-weights", "wb") as file:
        file.truncate(BYTES)
    (folder / "b-progress.json").write_text(json.dumps(epoch))


def die_in_mid_upload(run: Path, known: set[Path]) -> None:
    """Kill this process once a part of a new checkpoint is stored."""
    while True:
        for weights in set(run.glob("checkpoint_*/a-weights")) - known:
            if 0 < weights.stat().st_size < BYTES:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.0005)


def worker(config: dict[str, Any]) -> None:
    """Three epochs; the first attempt dies while the second's checkpoint is on its way."""
    context, run, epoch = ray.train.get_context(), Path(config["run"]), 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            epoch = json.loads(Path(folder, "b-progress.json").read_text())
            whole = Path(folder, "a-weights").stat().st_size == BYTES
    first = checkpoint is None
    if context.get_world_rank() == 0:
        attempt = {"from": epoch, "whole": first or whole, "world": context.get_world_size()}
        with open(config["attempts"], "a") as file:
            file.write(json.dumps(attempt) + "\n")
    while epoch < 3:
        if first and epoch == 1:
            while not ray.train.get_all_reported_checkpoints():
                time.sleep(0.01)
            if context.get_world_rank() == 0:
                known = set(run.glob("checkpoint_*/a-weights"))
                threading.Thread(target=die_in_mid_upload, args=(run, known), daemon=True).start()
        epoch += 1
        report({"epoch": epoch}, lambda folder: save(folder, epoch))  # noqa: B023
        if first and epoch == 2:
            time.sleep(60)  # whoever is not killed waits for the end of the group


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What another cluster is asked, whose address for jobs is in the environment; it knows no actor of this one."""
    nothing = {"result": [], "total": 0, "num_after_truncation": 0, "num_filtered": 0, "warnings": []}
    with answering({"result": True, "msg": "", "data": {"result": nothing}}) as (address, asked):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        yield asked


def test_a_kill_in_mid_upload_leaves_the_former_checkpoint(tmp_path: Path, asked: list[str]) -> None:
    """And an elastic group has as many workers as there is room for, before and after; no other cluster is asked."""
    attempts = tmp_path / "attempts"
    config = {"run": str(tmp_path / "ray" / "killed"), "attempts": str(attempts)}
    with connected(Ray(address=None, storage=str(tmp_path / "ray")), cpus=2):
        workers = int(min(4, ray.cluster_resources()["CPU"]))
        result = run_workers(worker, config, Group("killed", str(tmp_path / "ray"), (1, 4), 1), "train", steps=3)
        with result.checkpoint.as_directory() as folder:
            assert json.loads(Path(folder, "b-progress.json").read_text()) == 3
            assert Path(folder, "a-weights").stat().st_size == BYTES
    first, second = map(json.loads, attempts.read_text().splitlines())
    assert first == {"from": 0, "whole": True, "world": workers}
    assert second == {"from": 1, "whole": True, "world": workers}
    assert asked == []


def test_a_checkpoint_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path) -> None:
        (folder / "a-weights").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    with pytest.raises(OSError, match="no room"):
        report({"epoch": 1}, fill)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "kept"), [('{"checkpoint_results": []}', True), ("", False), ('{"check', False)])
def test_a_run_whose_list_of_checkpoints_was_cut_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, kept: bool
) -> None:
    run = tmp_path / "train-1"
    run.mkdir()
    (run / LIST).write_text(content)
    drop_cut(str(tmp_path), "train-1")
    assert run.exists() == kept
    assert ("begins anew" in capsys.readouterr().err) != kept
    drop_cut(str(tmp_path), "train-2")  # of which nothing is there


def test_progress_is_told_some_times_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = SimpleNamespace(now=100.0), SimpleNamespace(steps=[])
    monkeypatch.setattr("pipelines.workers.time", SimpleNamespace(monotonic=lambda: clock.now))
    reporter = Reporter(SimpleNamespace(put=told.steps.append), epoch=2)
    for step in range(1, 33):
        reporter(step, 32)
        clock.now += PAUSE / 8
    assert told.steps == [64 + step for step in (1, 9, 17, 25, 32)]


def test_a_training_whose_last_checkpoint_is_lost_is_not_taken_for_finished(tmp_path: Path) -> None:
    training = SimpleNamespace(finished=False, load=lambda folder: setattr(training, "finished", read(folder) == 3))

    def read(folder: Path) -> int:
        return int((folder / "epoch").read_text())

    result = SimpleNamespace(checkpoint=ray.train.Checkpoint.from_directory(tmp_path))
    (tmp_path / "epoch").write_text("3")
    load_last(result, training)
    (tmp_path / "epoch").write_text("2")
    with pytest.raises(UserError, match="the last checkpoint of the workers was lost: run the stage again"):
        load_last(result, training)


def test_one_stage_is_at_a_work_at_a_time(tmp_path: Path) -> None:
    """What it holds another process lets go of when it is killed."""
    group = Group("train-1", str(tmp_path / "ray"), 1, 0)
    command = [sys.executable, "-c", HOLD, group.storage]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another stage is at this work, train-1"), sole_driver(group):
            pass
        with sole_driver(replace(group, name="train-2")):
            pass
        other.kill()
    with sole_driver(group):
        pass


def test_a_lock_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"), sole_driver(Group("train-1", str(tmp_path / "file"), 1, 0)):
        pass


def test_a_run_whose_discarding_was_cut_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(storage: str, name: str) -> None:
        raise KeyboardInterrupt

    for file in (LIST, "checkpoint_1/weights"):
        (tmp_path / "train-1" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train-1" / file).write_text("{}")
    with monkeypatch.context() as killing:
        killing.setattr("pipelines.workers.discard", killed)
        with pytest.raises(KeyboardInterrupt):
            discard_run(str(tmp_path), "train-1")
    assert [path.name for path in (tmp_path / "train-1").iterdir()] == ["checkpoint_1"]
    discard_run(str(tmp_path), "train-1")
    assert not (tmp_path / "train-1").exists()
