"""`masm data import` and `export` from end to end, on crops as DeepfakeBench has them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from masm.cli import app
from masm.data.procedural import draw_face
from masm.data.table import read_failures, read_table
from masm.data.versions import digests
from masm.settings import load_settings
from tests.conftest import ROOT
from tests.pipeline.workspace import make_workspace, run

VIDEOS, FRAMES, TAKEN = 6, 12, 4
SPREAD = [1, 4, 7, 10]
"""The frames that are taken: the middles of equal parts (defect 2: not the first ones)."""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of drawn people as DeepfakeBench stores them, with a damaged, an empty and a missing frame."""
    root = tmp_path_factory.mktemp("benchmark")
    keys: dict[str, dict[str, object]] = {"UADFV_Real": {}, "UADFV_Fake": {}}
    for key, videos in keys.items():
        for person in range(VIDEOS):
            crop = draw_face(1, person, 0, 160).image
            paths = [f"UADFV/{key}/frames/{person:04d}/{number}.png" for number in range(FRAMES)]
            for number, path in enumerate(paths):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                shifted = cv2.GaussianBlur(crop, (0, 0), 2) if key == "UADFV_Fake" else crop
                cv2.imwrite(str(root / path), cv2.cvtColor(np.roll(shifted, number, 1), cv2.COLOR_RGB2BGR))
            videos[f"{person:04d}"] = {"label": key, "frames": paths[::-1], "masks": []}
    tree = {"UADFV": {key: {"train": {}, "val": {}, "test": videos} for key, videos in keys.items()}}
    (root / "UADFV.json").write_text(json.dumps(tree))
    first = root / "UADFV" / "UADFV_Real" / "frames" / "0000"
    (first / f"{SPREAD[0]}.png").unlink()
    whole = (first / f"{SPREAD[-1]}.png").read_bytes()
    (first / f"{SPREAD[-1]}.png").write_bytes(whole[: len(whole) // 2])
    for number in range(FRAMES):
        (root / "UADFV" / "UADFV_Fake" / "frames" / "0005" / f"{number}.png").write_bytes(b"")
    return root


def masm_data(folder: Path, *command: str) -> str:
    """The output of `masm data`."""
    main = ("-c", "from masm.cli import main; main()", "data", *command, "--params", str(folder / "params.yaml"))
    result = run(sys.executable, *main, folder=folder.parent, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_crops_become_a_table_that_dvc_knows(benchmark: Path, tmp_path: Path) -> None:
    changes = {"crop.size": 96, "crop.video_frames": TAKEN, "checks.coverage": 0.9}
    folder = make_workspace(tmp_path / "workspace", changes)
    command = ("import", str(benchmark / "UADFV.json"), "--layout", "deepfakebench", "--name", "uadfv")
    assert "144 files, 1 of them missing" in masm_data(folder, *command)

    settings = load_settings(folder / "params.yaml")
    rows = read_table(settings.table("uadfv")).to_pandas()
    failures = read_failures(settings.table("uadfv")).to_pandas()
    assert len(rows) + failures["frame_index"].notna().sum() == TAKEN * (2 * VIDEOS - 1)
    lost = failures[failures["video_id"] == "0000"]
    assert set(lost["outcome"]) == {"unreadable"}
    assert lost["frame_index"].tolist() == [SPREAD[0], SPREAD[-1]]  # nothing stands in for them
    (whole,) = failures[failures["frame_index"].isna()].to_dict("records")
    assert (whole["video_id"], whole["method"], whole["outcome"]) == ("0005", "UADFV", "unreadable")
    outcomes = json.loads((settings.table("uadfv") / "outcomes.json").read_text())
    assert outcomes == {"ok": 2 * VIDEOS - 1, "unreadable": 1}

    for row in rows.itertuples():  # each crop is its own frame's, scaled
        key = "UADFV_Fake" if row.label else "UADFV_Real"
        frame = cv2.imread(str(benchmark / "UADFV" / key / "frames" / row.video_id / f"{row.frame_index}.png"))
        image = cv2.imdecode(np.frombuffer(row.image, np.uint8), cv2.IMREAD_COLOR)
        assert (image == cv2.resize(frame, (96, 96), interpolation=cv2.INTER_AREA)).all()
    assert rows[rows["video_id"] == "0001"]["frame_index"].tolist() == 2 * SPREAD

    locked = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    assert list(locked) == ["ingest@uadfv"]
    only = settings.model_copy(update={"datasets": {"uadfv": settings.datasets["uadfv"]}})
    former = digests(only)["uadfv"]

    masm_data(folder, "export", "uadfv", str(tmp_path / "out"))
    tree = json.loads((tmp_path / "out" / "uadfv.json").read_text())
    videos = tree["uadfv"]["uadfv_Real"]["test"]
    assert sorted(videos) == [f"{person:04d}" for person in range(VIDEOS)]
    stored = rows[(rows["video_id"] == "0003") & (rows["label"] == 0)]["image"].tolist()
    assert [(tmp_path / "out" / path).read_bytes() for path in videos["0003"]["frames"]] == stored

    frames = benchmark / "UADFV" / "UADFV_Real" / "frames" / "0001"
    (frames / f"{SPREAD[1]}.png").write_bytes((frames / f"{SPREAD[2]}.png").read_bytes())
    masm_data(folder, *command)
    assert digests(only)["uadfv"] != former


def test_each_layout_is_explained() -> None:
    result = CliRunner().invoke(app, ["data", "list-layouts"])
    assert result.exit_code == 0
    for name in ("deepfakebench", "ffpp", "dfd", "celebdf", "dfdc", "imagefolder", "pathlist", "videos", "folder"):
        assert f"{name}: " in result.output
    assert "SRC/splits/{train,val,test}.json" in result.output
