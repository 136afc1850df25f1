from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from masm.data import imported
from masm.data.extract import Extraction, FaceFrame, FrameFailure
from masm.data.faces import CropProfile
from masm.data.imported import count_tasks, make_tasks
from masm.data.importers.photograph import Unusable
from masm.data.importing import Request, import_dataset
from masm.data.ingest import Jobs, ingest, write_part
from masm.data.table import SCHEMA, sha256
from masm.errors import CheckFailed, UserError
from masm.settings import Settings, load_settings
from tests.conftest import ROOT
from tests.data.importers.trees import ffpp_tree, touch
from tests.pipeline.workspace import SMALL, edit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A workspace with a train and a test dataset from one tree of FaceForensics++."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    tree = ffpp_tree(tmp_path / "ff", ("Deepfakes",))
    for name, role in (("ff-train", "train"), ("ff-test", "test")):
        request = Request("ffpp", tree, name, role)  # type: ignore[arg-type]
        import_dataset(load_settings(folder / "params.yaml"), request, lambda done, total: None)
    return load_settings(folder / "params.yaml")


def test_a_dataset_takes_the_splits_of_its_role(settings: Settings) -> None:
    train = list(make_tasks(settings, "ff-train"))
    test = list(make_tasks(settings, "ff-test"))
    assert (len(train), len(test)) == (count_tasks(settings, "ff-train"), count_tasks(settings, "ff-test")) == (52, 12)
    assert {task.split for task in train} == {"train", "val"}
    assert {task.split for task in test} == {"test"}
    assert not {task.indexed.clip.video_id for task in train} & {task.indexed.clip.video_id for task in test}


def stub(outcome: Extraction | Unusable) -> Callable[..., Extraction]:
    def extract(
        files: Sequence[Path], masks: Sequence[Path], profile: CropProfile, weights: Path | None
    ) -> Extraction:
        if isinstance(outcome, Unusable):
            raise outcome
        return outcome

    return extract


def run(settings: Settings, outcome: Extraction | Unusable, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(imported, "extract", stub(outcome))
    return next(task for task in make_tasks(settings, "ff-test") if task.indexed.clip.video_id == "020_755").run()


def test_rows_carry_what_the_layout_and_the_extraction_say(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.full((64, 64), 255, np.uint8)
    frame = FaceFrame(17, 2, image, np.array([1, 2, 3, 4], np.float32), np.ones((5, 2), np.float32), mask)
    lost = FrameFailure(40, "no face", "nobody there")
    outcome = run(settings, Extraction([frame], [lost]), monkeypatch)
    (row,) = pa.Table.from_pylist(outcome.rows, schema=SCHEMA).to_pylist()
    expected = {
        "sample_id": "ff-test/DF/020_755/17",
        "dataset": "ff-test",
        "split": "test",
        "label": 1,
        "method": "DF",
        "family": "face swap",
        "video_id": "020_755",
        "frame_index": 17,
        "track_id": 2,
        "sources": ["FF++:020", "FF++:755"],
        "source_clip": "FF++:020",
        "identity": "FF++:020",  # nobody says who it is: the recording stands for its person
        "compression": "c23",
        "bbox": [1, 2, 3, 4],
        "landmarks": [1] * 10,
        "width": 64,
        "height": 64,
    }
    assert {name: row[name] for name in expected} == expected
    assert (cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB) == image).all()
    assert (cv2.imdecode(np.frombuffer(row["mask"], np.uint8), cv2.IMREAD_GRAYSCALE) == mask).all()
    assert row["sha256"] == sha256(row["image"])
    (failure,) = outcome.failures
    assert (failure["video_id"], failure["frame_index"], failure["outcome"]) == ("020_755", 40, "no face")


def test_a_video_that_cannot_be_used_is_a_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(settings, Unusable("too short", "3 frames"), monkeypatch)
    assert outcome.rows == []
    assert [(one["frame_index"], one["outcome"], one["reason"]) for one in outcome.failures] == [
        (None, "too short", "3 frames")
    ]


def test_a_file_that_changed_stops_the_ingest(settings: Settings, tmp_path: Path) -> None:
    touch(tmp_path / "ff" / "original_sequences" / "youtube" / "c23" / "videos" / "020.mp4", "changed")
    task = next(task for task in make_tasks(settings, "ff-test") if task.indexed.clip.video_id == "020")
    with pytest.raises(UserError, match=r"020\.mp4 is not as it was when it was imported"):
        task.run()


def test_a_file_that_was_repaired_is_tried_again(tmp_path: Path) -> None:
    """A permission or a disk that is repaired changes neither size nor time, nor do these bytes."""
    folder, images = tmp_path / "workspace", tmp_path / "images"
    folder.mkdir()
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    edit(folder / "params.yaml", {**SMALL, "crop.detector": "given"})
    for number in range(8):
        picture = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        path = images / "test" / ("real", "fake")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
    sound, stamp = path.read_bytes(), path.stat()

    def store(data: bytes) -> None:
        path.write_bytes(data)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    store(bytes(len(sound)))
    import_dataset(
        load_settings(folder / "params.yaml"), Request("imagefolder", images, "mine", "test"), lambda done, total: None
    )
    settings = load_settings(folder / "params.yaml")
    tried: list[str] = []

    def run_jobs(jobs: Jobs) -> Iterator[None]:
        for task, part in jobs:
            assert isinstance(task, imported.Task)
            tried.append(task.indexed.clip.video_id)
            write_part(part, task.run())
            yield

    with pytest.raises(CheckFailed, match="7 of 8 videos gave a face"):
        ingest(settings, "mine", lambda done, total: None, run_jobs)
    assert len(tried) == 8
    store(sound)
    tried.clear()
    assert ingest(settings, "mine", lambda done, total: None, run_jobs).outcomes == {"ok": 8}
    assert tried == ["7"]


def test_an_index_that_is_not_the_one_of_params_is_refused(settings: Settings) -> None:
    index = settings.root / "indices"
    (index / "ff-test.parquet").unlink()
    with pytest.raises(UserError, match="there is no index at"):
        list(make_tasks(settings, "ff-test"))
    other = settings.model_copy(
        update={"datasets": {"ff-test": settings.datasets["ff-train"].model_copy(update={"digest": "other"})}}
    )
    with pytest.raises(UserError, match=r"is not the index that datasets\.ff-test\.digest names"):
        list(make_tasks(other, "ff-test"))
