"""The scores file of `evaluate`: the same whatever came between, a kill or another number of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from masm.data import parts as parts_module
from masm.data.parts import Part, plan
from masm.data.table import table_shards
from masm.detector import Detector
from masm.errors import UserError
from masm.scores import Work, read_scores
from masm.scoring import probabilities, score_parts
from masm.settings import Settings, load_settings
from pipelines import scores as module
from pipelines.scores import score_models
from tests.conftest import ROOT
from tests.pipeline.workspace import edit
from tests.serving.workspace import TESTS, make_workspace, save, tiny_detector

DIES = """
import os, signal, sys
from pathlib import Path
from masm import scores
from masm.data import parts
from masm.settings import load_settings
from tests.pipeline.test_scores import PART_ROWS, write

left, replace = int(sys.argv[2]), os.replace

def replace_or_die(source, target):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)  # the part is written, and has no name yet
    left -= 1
    replace(source, target)

parts.PART_ROWS, scores.os.replace = PART_ROWS, replace_or_die
write(load_settings(Path(sys.argv[1]) / "params.yaml"))
"""
PART_ROWS, BATCH = 6, 3


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A workspace with two test datasets of 24 frames, and two models."""
    monkeypatch.setattr(parts_module, "PART_ROWS", PART_ROWS)
    root = make_workspace(tmp_path / "workspace", tmp_path / "none.db").root
    save(tiny_detector(1), root / "models" / "probe")
    robustness = {"kinds": ["contrast", "noise"], "frames": 4}
    changes = {"robustness": robustness, "batch_size": BATCH, "slices": ["family"]}
    edit(root / "params.yaml", {f"evaluate.{key}": value for key, value in changes.items()})
    (root / "reports" / "scores.parquet").unlink()
    lock = root / "dvc.lock"
    for name in TESTS:  # where the tables are: workers on other nodes fetch what is missing there
        lock.write_text(lock.read_text().replace(f"path: data/{name}", f"path: data/test/{name}"))
    return load_settings(root / "params.yaml")


def write(settings: Settings) -> Path:
    folders = {"adapted": settings.root / "models" / "detector", "probe": settings.root / "models" / "probe"}
    detectors = {name: Detector.load(folder, merged=True) for name, folder in folders.items()}
    path = settings.root / "reports" / "scores.parquet"
    score_models(settings, detectors, folders, path)
    return path


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that are scored from now on."""
    seen: list[Part] = []

    def watched(*arguments: object) -> object:
        for part, scores in score_parts(*arguments):  # type: ignore[arg-type]
            seen.append(part)
            yield part, scores

    monkeypatch.setattr(module, "score_parts", watched)
    return seen


def test_a_stage_that_was_killed_scores_what_is_missing_and_writes_the_same_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = settings.with_role("test")
    plans = {"adapted": plan(settings, tests, distorted=True), "probe": plan(settings, tests)}
    count, done = sum(map(len, plans.values())), len(plans["adapted"]) + 2
    command = [sys.executable, "-c", DIES, str(settings.root), str(done)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (work,) = (settings.root / "data" / "work" / ".scores").iterdir()
    assert len(list(work.glob("*/[!.]*.parquet"))) == done
    assert not (settings.root / "reports" / "scores.parquet").exists()
    seen = watch(monkeypatch)
    resumed = write(settings).read_bytes()
    assert [part.name for part in seen] == [part.name for part in plans["probe"][2:]]
    assert not (settings.root / "data" / "work" / ".scores").exists()
    seen.clear()
    assert write(settings).read_bytes() == resumed
    assert len(seen) == count


def test_other_frames_models_or_rules_start_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"adapted": settings.root / "models" / "detector"}
    names = [module._name(settings, folders)]
    evaluate = settings.evaluate.model_copy(update={"batch_size": 5})
    names.append(module._name(settings.model_copy(update={"evaluate": evaluate}), folders))
    os.utime(table_shards(settings.table("denoise"))[0])
    names.append(module._name(settings, folders))
    save(tiny_detector(2), folders["adapted"])
    names.append(module._name(settings, folders))
    assert len(set(names)) == len(names)
    assert module._name(settings, folders) == names[-1]


def test_distorted_rows_stand_beside_those_of_the_tables(settings: Settings) -> None:
    scores = read_scores(write(settings))
    assert list(scores) == ["adapted", "probe"]
    assert set(scores["probe"]["distortion"]) == {"none"}
    adapted = scores["adapted"]
    counts = adapted.groupby(["dataset", "distortion", "level"]).size()
    assert counts["denoise", "none", 0] == 24
    assert {counts["denoise", kind, level] for kind in ("contrast", "noise") for level in range(1, 6)} == {8}
    detector = Detector.load(settings.root / "models" / "detector", merged=True)
    distorted = adapted[(adapted["distortion"] == "contrast") & (adapted["level"] == 2)]
    for part, table in score_parts(detector, settings, plan(settings, ["upsample"], distorted=True)):
        if (part.distortion, part.level) == ("contrast", 2):
            own = distorted[distorted["sample_id"].isin(table["sample_id"].to_pylist())]
            np.testing.assert_allclose(own["score"], table["score"].to_numpy(), atol=1e-6)
    clean = adapted[adapted["distortion"] == "none"].set_index("sample_id")["score"]
    assert (distorted["score"].to_numpy() != clean[distorted["sample_id"]].to_numpy()).any()


def test_a_part_that_is_damaged_is_named(settings: Settings, tmp_path: Path) -> None:
    work, part = Work(tmp_path / "parts"), plan(settings, ["denoise"])[0]
    assert work.missing("adapted", [part]) == [part]
    detector = Detector.load(settings.root / "models" / "detector", merged=True)
    ((_, scores),) = score_parts(detector, settings, [part])
    work.keep("adapted", part, scores)
    assert work.read("adapted", part).equals(scores)
    assert work.missing("adapted", [part]) == []
    work.path("adapted", part).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"adapted/denoise-none-0-00000-00000000\.parquet is damaged .*: remove it"):
        work.read("adapted", part)


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_write_what_none_do_and_a_lost_one_is_replaced(settings: Settings, tmp_path: Path) -> None:
    from masm.cluster import connected
    from masm.parallel import run_on_actors

    marker = tmp_path / "died"

    def doubled_or_dead(state: int, item: int) -> int:
        """The first who comes to item 3 dies."""
        if item == 3 and not marker.exists():
            marker.touch()
            os._exit(1)
        return state * item

    def refused(state: int, item: int) -> int:
        raise UserError(f"item {item}")

    def dead(state: int, item: int) -> int:
        os._exit(1)

    alone = pq.read_table(write(settings)).to_pandas()
    shared = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"workers": 2})})
    together = pq.read_table(write(shared)).to_pandas()
    pd.testing.assert_frame_equal(together, alone, rtol=0, atol=1e-6)
    with connected(settings.ray, cpus=2):
        results = dict(run_on_actors(doubled_or_dead, 2, range(6), workers=2))
        assert results == {item: 2 * item for item in range(6)}
        assert marker.exists()
        with pytest.raises(UserError, match="item 0"):
            list(run_on_actors(refused, 2, [0], workers=2))
        with pytest.raises(UserError, match=r"a worker was lost 4 times.*lower evaluate\.workers"):
            list(run_on_actors(dead, 2, [0], workers=1))


def test_scores_are_those_of_a_plain_loop(settings: Settings) -> None:
    scores = read_scores(write(settings))["adapted"]
    detector = Detector.load(settings.root / "models" / "detector", merged=True)
    for name in settings.with_role("test"):
        rows = pq.read_table(table_shards(settings.table(name))[0], columns=["sample_id", "image"])
        own = scores[(scores["dataset"] == name) & (scores["distortion"] == "none")]
        assert own["sample_id"].tolist() == rows["sample_id"].to_pylist()
        expected = [probabilities(detector, parts_module.decode([image]))[0] for image in rows["image"].to_pylist()]
        np.testing.assert_allclose(own["score"], expected, atol=1e-6)
