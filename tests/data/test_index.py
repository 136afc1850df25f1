from __future__ import annotations

import os
from pathlib import Path

import pytest

from masm.data import index as module
from masm.data.index import (
    Clip,
    IndexedClip,
    count_splits,
    index_digest,
    index_root,
    read_index,
    stamp_of,
    write_index,
)
from masm.errors import UserError
from tests.data.importers.trees import touch


def indexed(root: Path, number: int, split: str = "train") -> IndexedClip:
    file, mask = touch(root / "v" / f"{number}.mp4", "x" * number), root / "v" / "none.mp4"
    sources = ("FF++:1", "FF++:2")
    clip = Clip(
        *(f"{number}", split, 1, "DF", "face swap", None, sources[0], sources, "c23"),
        files=(file,),
        masks=(mask,),
        attributes=(("key", "value"),),
    )
    return IndexedClip(clip, (stamp_of(file), None))


def test_clips_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 3)
    clips = [indexed(tmp_path, number, "val" if number % 4 == 0 else "train") for number in range(1, 9)]
    digest = write_index(tmp_path / "set.parquet", clips, tmp_path)
    assert list(read_index(tmp_path / "set.parquet")) == clips
    assert list(read_index(tmp_path / "set.parquet", ["val"])) == [clips[3], clips[7]]
    assert count_splits(tmp_path / "set.parquet") == {"train": 6, "val": 2}
    assert index_digest(tmp_path / "set.parquet") == digest
    assert index_root(tmp_path / "set.parquet") == tmp_path
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["set.parquet"]


def test_the_digest_follows_every_file_but_not_the_place(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        clips = [indexed(root, number) for number in (1, 2)]
        for number in (1, 2):
            os.utime(root / "v" / f"{number}.mp4", ns=(0, 10**9 * number))
        clips = [IndexedClip(one.clip, (stamp_of(one.clip.files[0]), None)) for one in clips]
        return write_index(root / "set.parquet", clips, root)

    first = digest(tmp_path / "here")
    assert digest(tmp_path / "there") == first
    os.utime(tmp_path / "here" / "v" / "1.mp4", ns=(0, 5))
    clips = [indexed(tmp_path / "here", 2)]
    assert write_index(tmp_path / "here" / "set.parquet", clips, tmp_path / "here") != first


def test_a_file_that_changed_is_found(tmp_path: Path) -> None:
    one = indexed(tmp_path, 3)
    assert one.changed() is None
    touch(tmp_path / "v" / "none.mp4")  # was not there at the import
    assert one.changed() == tmp_path / "v" / "none.mp4"
    (tmp_path / "v" / "none.mp4").unlink()
    (tmp_path / "v" / "3.mp4").write_text("other")
    assert one.changed() == tmp_path / "v" / "3.mp4"


def test_no_index_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no index at"):
        list(read_index(tmp_path / "set.parquet"))
    touch(tmp_path / "set.parquet", "no Parquet")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_index(tmp_path / "set.parquet"))
