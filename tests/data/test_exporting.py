from __future__ import annotations

import json
from pathlib import Path

import pytest

from masm.data.exporting import export_crops
from masm.data.table import read_table
from masm.errors import UserError
from masm.settings import Settings
from tests.data.tables import DATASETS, make_settings, write_tables


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = make_settings(tmp_path / "workspace", {"judge": DATASETS["judge"]})
    write_tables(made)
    return made


def test_every_crop_is_a_file_that_the_manifest_names(settings: Settings, tmp_path: Path) -> None:
    exported = export_crops(settings, "judge", tmp_path / "out")
    tree = json.loads(exported.manifest.read_text())["judge"]
    rows = read_table(settings.table("judge")).to_pylist()
    for row in rows:
        video = tree["swap_Fake" if row["label"] else "judge_Real"]["test"][row["video_id"]]
        assert (exported.root / video["frames"][row["frame_index"]]).read_bytes() == row["image"]
    assert len([path for path in exported.root.rglob("*") if path.is_file()]) == len(rows) + 1
    with pytest.raises(UserError, match="there is something at "):
        export_crops(settings, "judge", tmp_path / "out")


def test_two_videos_of_one_folder_are_refused_and_nothing_is_left(settings: Settings, tmp_path: Path) -> None:
    names = {"judge-test-0": "a/b", "judge-test-1": "a-b"}
    write_tables(settings, lambda found: {"video_id": names.get(found["video_id"], found["video_id"])})
    with pytest.raises(
        UserError, match=r"real/a/b and real/a-b of datasets\.judge would both be real/a-b: rename one"
    ):
        export_crops(settings, "judge", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
