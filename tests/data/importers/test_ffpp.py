from __future__ import annotations

from pathlib import Path

import pytest

from masm.data.splits import straddling, strict_split
from masm.errors import UserError
from tests.data.importers.trees import OFFICIAL, STRADDLING, ffpp_tree, read, touch


def test_pairs_stay_in_their_official_split(tmp_path: Path) -> None:
    clips, notes = read("ffpp", ffpp_tree(tmp_path))
    assert len(clips) == 32 + 2 * 32
    homes = {clip: split for split, pairs in OFFICIAL.items() for pair in pairs for clip in pair}
    assert all(clip.split == homes[name] for clip in clips for name in clip.video_id.split("_"))
    fake = next(clip for clip in clips if clip.video_id == "003_000" and clip.method == "NT")
    assert (fake.family, fake.source_clip, fake.sources) == ("reenactment", "FF++:003", ("FF++:003", "FF++:000"))
    assert fake.files == (tmp_path / "manipulated_sequences/NeuralTextures/c23/videos/003_000.mp4",)
    assert set(notes) == {
        f"no manipulated_sequences/{name}/c23/videos" for name in ("Face2Face", "FaceSwap", "FaceShifter")
    }


def test_the_recordings_that_straddle_the_official_split_are_found(tmp_path: Path) -> None:
    """Defect 10: of the source clips seven straddle, 755/756 and 954/955 between train and test."""
    clips, _ = read("ffpp", ffpp_tree(tmp_path))
    assert straddling(clips) == STRADDLING


def test_a_strict_split_keeps_the_test_and_leaves_out_what_straddles(tmp_path: Path) -> None:
    clips, _ = read("ffpp", ffpp_tree(tmp_path))
    strict = strict_split(clips)
    assert [clip.video_id for clip in strict] == [clip.video_id for clip in clips]
    assert straddling([clip for clip in strict if clip.split != "excluded"]) == {}
    reals = {clip.video_id: clip.split for clip in strict if clip.label == 0}
    assert {name for name, split in reals.items() if split == "excluded"} == {
        *("756", "007", "955", "008"),  # of train, with test
        *("605", "001", "639", "002", "837", "004", "875", "005", "982", "006"),  # of train, with val
    }
    assert [
        clip for clip, former in zip(strict, clips, strict=True) if former.split == "test" and clip != former
    ] == []


def test_a_mask_video_goes_with_its_fake(tmp_path: Path) -> None:
    mask = touch(ffpp_tree(tmp_path) / "manipulated_sequences" / "Deepfakes" / "masks" / "videos" / "000_003.mp4")
    clips, _ = read("ffpp", tmp_path)
    assert {clip.masks for clip in clips if clip.video_id == "000_003"} == {(mask,), ()}


def test_the_compression_is_the_one_that_is_there_or_asked_for(tmp_path: Path) -> None:
    ffpp_tree(ffpp_tree(tmp_path), level="c40")
    with pytest.raises(UserError, match="has c23 and c40: choose"):
        read("ffpp", tmp_path)
    clips, _ = read("ffpp", tmp_path, compression="c40")
    assert {clip.compression for clip in clips} == {"c40"}
    with pytest.raises(UserError, match="choose raw, c23 or c40"):
        read("ffpp", tmp_path, compression="raw")


def test_what_belongs_to_no_split_is_counted(tmp_path: Path) -> None:
    videos = ffpp_tree(tmp_path, ("Deepfakes",)) / "original_sequences" / "youtube" / "c23" / "videos"
    touch(videos / "999.mp4")
    touch(videos / "readme.txt")
    clips, notes = read("ffpp", tmp_path)
    assert len(clips) == 64
    assert notes["videos that are in no official split left out"] == 1
    assert notes["other files left out (.txt)"] == 1


def test_no_tree_and_no_splits_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"splits/train.json cannot be read"):
        read("ffpp", tmp_path)
    touch(ffpp_tree(tmp_path) / "splits" / "val.json", '{"a": 1}')
    with pytest.raises(UserError, match="is no list of pairs"):
        read("ffpp", tmp_path)
    with pytest.raises(UserError, match=r"actors has no <compression>/videos"):
        read("dfd", tmp_path)


def test_deepfakedetection_names_its_actors(tmp_path: Path) -> None:
    touch(tmp_path / "original_sequences/actors/c23/videos/01__kitchen_pan.mp4")
    touch(tmp_path / "manipulated_sequences/DeepFakeDetection/c23/videos/01_11__kitchen_pan__9OM3VE0Y.mp4")
    clips, _ = read("dfd", tmp_path)
    assert [(clip.label, clip.identity, clip.source_clip, clip.split) for clip in clips] == [
        (0, "DFD:01", "DFD:01__kitchen_pan", ""),
        (1, "DFD:01", "DFD:01__kitchen_pan", ""),
    ]
