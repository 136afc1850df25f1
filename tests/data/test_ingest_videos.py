"""Video files of real people through import and ingest."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from masm.data import ingest as module
from masm.data.importing import Request, import_dataset
from masm.data.ingest import ingest
from masm.data.table import read_failures, read_table
from masm.errors import CheckFailed
from masm.settings import Settings, load_settings
from tests.conftest import ROOT
from tests.data.videos import people, scene, write_video
from tests.pipeline.workspace import SMALL, edit

TAKEN = 5


@pytest.fixture(scope="module")
def videos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real videos with a face and one without; fakes: two, a short one, a truncated one and an empty one."""
    folder = tmp_path_factory.mktemp("videos")
    for kind in ("real", "fake/blur"):
        (folder / kind).mkdir(parents=True)
    for number, picture in enumerate(people(shared, 3)):
        frames = [scene({(4 * step, 0): picture}, width=440) for step in range(20)]
        write_video(folder / "real" / f"{number}.mp4", frames)
        if number < 2:
            write_video(
                folder / "fake" / "blur" / f"{number}.mp4", [cv2.GaussianBlur(one, (0, 0), 1.5) for one in frames]
            )
    write_video(folder / "real" / "room.mp4", [scene({})] * 20)
    write_video(folder / "fake" / "blur" / "short.mp4", frames[:3])
    whole = (folder / "real" / "0.mp4").read_bytes()
    (folder / "fake" / "blur" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "fake" / "blur" / "empty.mp4").touch()
    return folder


def make_settings(folder: Path, videos: Path, shared: Path, coverage: float) -> Settings:
    folder.mkdir(exist_ok=True)
    params = folder / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    weights = str(shared / "models" / "face_detection_yunet_2023mar.onnx")
    crop = {"crop.detector": "yunet", "crop.detector_weights": weights, "crop.video_frames": TAKEN}
    edit(params, {**SMALL, **crop, "checks.coverage": coverage})
    import_dataset(load_settings(params), Request("videos", videos, "mine", "test"), lambda done, total: None)
    return load_settings(params)


@pytest.mark.slow
def test_every_video_is_a_row_or_a_failure_whatever_the_number_of_processes(
    videos: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for processes in (1, 2):
        monkeypatch.setattr(module.os, "cpu_count", lambda count=processes: count)
        settings = make_settings(tmp_path / str(processes), videos, shared, coverage=0.5)
        ingest(settings, "mine", lambda done, total: None)
        tables.append(settings.table("mine"))
    assert {path.name for path in tables[0].iterdir()} == {"faces-00000.parquet", "failures.parquet", "outcomes.json"}
    for path in tables[0].iterdir():
        assert path.read_bytes() == (tables[1] / path.name).read_bytes()
    outcomes = json.loads((tables[0] / "outcomes.json").read_text())
    assert outcomes == {"ok": 5, "no face": 1, "too short": 1, "unreadable": 2}
    rows = read_table(tables[0]).to_pandas()
    assert rows.groupby(["method", "video_id"]).size().to_dict() == {
        ("blur", "fake/blur/0"): TAKEN,
        ("blur", "fake/blur/1"): TAKEN,
        ("real", "real/0"): TAKEN,
        ("real", "real/1"): TAKEN,
        ("real", "real/2"): TAKEN,
    }
    assert set(rows["frame_index"]) == {2, 6, 10, 14, 18}
    image = cv2.imdecode(np.frombuffer(rows["image"][0], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (64, 64, 3)
    failures = read_failures(tables[0]).to_pandas().set_index("video_id")
    assert failures["frame_index"].isna().all()
    assert failures["outcome"].to_dict() == {
        "real/room": "no face",
        "fake/blur/short": "too short",
        "fake/blur/cut": "unreadable",
        "fake/blur/empty": "unreadable",
    }


@pytest.mark.slow
def test_a_set_under_the_coverage_limit_fails_with_the_reason(videos: Path, shared: Path, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "strict", videos, shared, coverage=0.95)
    with pytest.raises(CheckFailed) as caught:
        ingest(settings, "mine", lambda done, total: None)
    says = "5 of 9 videos gave a face, checks.coverage asks for 95%: 1 no face, 1 too short, 2 unreadable; the first: "
    assert says in str(caught.value)
