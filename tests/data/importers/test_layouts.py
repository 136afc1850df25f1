from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from masm.errors import UserError
from tests.data.importers.trees import read, touch


def test_celebdf_reads_its_list_with_1_as_real(tmp_path: Path) -> None:
    for name in ("Celeb-real/id0_0000", "YouTube-real/00170", "Celeb-synthesis/id0_id1_0000", "Celeb-real/id0_0001"):
        touch(tmp_path / f"{name}.mp4")
    listed = "1 YouTube-real/00170.mp4\n1 Celeb-real/id9_0009.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n"
    manifest = touch(tmp_path / "List_of_testing_videos.txt", listed)
    clips, _ = read("celebdf", tmp_path)
    found = {clip.video_id: (clip.split, clip.label, clip.identity, clip.source_clip) for clip in clips}
    assert found == {
        "id0_0000": ("train", 0, "Celeb-DF:id0", "Celeb-DF:id0_0000"),
        "id0_0001": ("train", 0, "Celeb-DF:id0", "Celeb-DF:id0_0001"),
        "id9_0009": ("test", 0, "Celeb-DF:id9", "Celeb-DF:id9_0009"),  # listed, not there: ingest reports it
        "00170": ("test", 0, None, "Celeb-DF:00170"),
        "id0_id1_0000": ("test", 1, "Celeb-DF:id0", "Celeb-DF:id0_0000"),
    }
    manifest.write_text("0 YouTube-real/00170.mp4\n")
    with pytest.raises(UserError, match=r"line 1: .* is not as expected: 1 is real"):
        read("celebdf", tmp_path)
    manifest.unlink()
    with pytest.raises(UserError, match=r"List_of_testing_videos.txt cannot be read"):
        read("celebdf", tmp_path)


def test_dfdc_reads_every_part(tmp_path: Path) -> None:
    first = {"aaa.mp4": {"label": "REAL", "split": "train", "original": None}}
    first["bbb.mp4"] = {"label": "FAKE", "split": "train", "original": "aaa.mp4"}
    touch(tmp_path / "part_0" / "metadata.json", json.dumps(first))
    touch(tmp_path / "part_1" / "metadata.json", json.dumps({"ccc.mp4": {"is_fake": 1}}))
    touch(tmp_path / "part_0" / "zzz.mp4")
    clips, notes = read("dfdc", tmp_path)
    assert [(c.video_id, c.split, c.label, c.source_clip, c.sources) for c in clips] == [
        ("aaa", "train", 0, "DFDC:aaa", ("DFDC:aaa",)),
        ("bbb", "train", 1, "DFDC:aaa", ("DFDC:aaa",)),
        ("ccc", "", 1, "DFDC:ccc", ()),
    ]
    assert notes == {"videos that metadata.json does not name left out": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not as the challenge has it"),
        ('{"a.mp4": {"label": "MAYBE"}}', "a.mp4 has no label FAKE or REAL"),
        ('{"../a.mp4": {"label": "FAKE"}}', "leads out of"),
    ],
)
def test_a_bad_dfdc_manifest_is_named(tmp_path: Path, text: str, says: str) -> None:
    touch(tmp_path / "part" / "metadata.json", text)
    with pytest.raises(UserError, match=says):
        read("dfdc", tmp_path)


def test_imagefolder_takes_images_and_folders_of_them(tmp_path: Path) -> None:
    for name in ("train/real/a.png", "train/fake/b.png", "test/fake/clip/10.png", "test/fake/clip/9.png"):
        touch(tmp_path / name)
    touch(tmp_path / "test" / "fake" / "swap" / "clip" / "0.jpg")
    touch(tmp_path / "test" / "real" / "notes.txt")
    touch(tmp_path / "test" / "real" / "._a.png")  # what some systems leave beside each file
    touch(tmp_path / "extra" / "c.png")
    clips, notes = read("imagefolder", tmp_path)
    assert [(c.split, c.method, c.video_id, [file.name for file in c.files]) for c in clips] == [
        ("test", "fake", "clip", ["9.png", "10.png"]),
        ("test", "swap", "clip", ["0.jpg"]),
        ("train", "fake", "b", ["b.png"]),
        ("train", "real", "a", ["a.png"]),
    ]
    assert notes == {
        "folders left out (extra)": 1,
        "other files left out (.txt)": 1,
        "other files left out (.png)": 1,
    }
    touch(tmp_path / "test" / "genuine" / "d.png")
    with pytest.raises(UserError, match="holds 'genuine': its folders must be real and fake"):
        read("imagefolder", tmp_path)


def test_pathlist_reads_one_file_per_source(tmp_path: Path) -> None:
    listed = "datasets/FF/DF/000_003/012.png\ndatasets/FF/DF/000_003/000.png\ndatasets/FF/DF/000_003/000.png\n"
    touch(tmp_path / "config" / "FF" / "test" / "DF.txt", listed)
    touch(tmp_path / "config" / "CDFv2" / "test" / "Celeb-real.txt", "datasets\\CDFv2\\Celeb-real\\id0_0000\\0.png\n")
    clips, notes = read("pathlist", tmp_path / "config", tmp_path)
    assert [(c.split, c.label, c.method, c.video_id, c.source_clip, len(c.files)) for c in clips] == [
        ("test", 0, "real", "id0_0000", "Celeb-DF:id0_0000", 1),
        ("test", 1, "DF", "000_003", "FF++:000", 2),
    ]
    assert clips[1].files[0] == tmp_path / "datasets/FF/DF/000_003/000.png"
    assert notes == {
        "paths that stand twice in one list were taken once": 1,
        "paths with \\ were read as paths with /": 1,
    }
    for source, label in (("RealVisXL", 1), ("unreal", 1), ("YouTube-real", 0), ("Real", 0), ("DFD_real", 0)):
        clips, _ = read("pathlist", touch(tmp_path / "list.txt", f"DF40/{source}/a/0.png"), tmp_path)
        assert [clip.label for clip in clips] == [label]
    with pytest.raises(UserError, match="is not <dataset>/<source>/<video>/<frame>"):
        read("pathlist", touch(tmp_path / "short.txt", "a.png"), tmp_path)


def test_videos_are_labelled_by_folders(tmp_path: Path) -> None:
    for name in ("real/a.mp4", "fake/b.MOV", "fake/swap/c.mp4"):
        touch(tmp_path / "loose" / name)
        touch(tmp_path / "split" / "val" / name)
    loose, _ = read("videos", tmp_path / "loose")
    assert [(c.split, c.label, c.method, c.video_id) for c in loose] == [
        ("", 1, "fake", "fake/b"),
        ("", 1, "swap", "fake/swap/c"),
        ("", 0, "real", "real/a"),
    ]
    assert {c.split for c in read("videos", tmp_path / "split")[0]} == {"val"}
    touch(tmp_path / "loose" / "d.mp4")
    with pytest.raises(UserError, match=r"d\.mp4 lies in neither real nor fake"):
        read("videos", tmp_path / "loose")


def test_videos_are_labelled_by_a_csv_file(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        touch(tmp_path / "in" / name)
    text = "path,label,split,method,identity,source\na.mp4,real,train,,ann,\nb.mp4,1,test,swap,,a.mp4\n"
    labels = touch(tmp_path / "labels.csv", text)
    clips, notes = read("videos", tmp_path / "in", labels=labels)
    assert [(c.video_id, c.split, c.method, c.identity, c.source_clip, c.sources) for c in clips] == [
        ("a", "train", "real", "mine:ann", "mine:a", ("mine:a",)),
        ("b", "test", "swap", None, "mine:a", ("mine:a",)),
    ]
    assert notes == {"videos that the CSV file does not name left out": 1}
    for text, says in (
        ("path,label\na.mp4,perhaps\n", "line 2: label 'perhaps'"),
        ("path,label,split\na.mp4,real,dev\n", "line 2: split 'dev'"),
        ("file,label\na.mp4,real\n", "its columns must be path, label"),
        ("path,label\n../a.mp4,real\n", "leads out of"),
    ):
        labels.write_text(text)
        with pytest.raises(UserError, match=says):
            read("videos", tmp_path / "in", labels=labels)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "real" / "a.mp4").parent.chmod(0)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read("videos", tmp_path)
