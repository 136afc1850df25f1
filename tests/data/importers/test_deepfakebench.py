from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from masm.data.importers.deepfakebench import manifest
from masm.errors import UserError
from tests.data.importers.trees import ffpp_manifest, read, store_manifest, touch


def test_import_then_export_gives_the_same_manifest(tmp_path: Path) -> None:
    tree = ffpp_manifest()
    clips, notes = read("deepfakebench", store_manifest(tmp_path, tree), tmp_path)
    assert manifest(clips, "mine", tmp_path) == tree
    assert not notes


def test_what_each_video_is_is_taken_from_keys_and_names(tmp_path: Path) -> None:
    clips, _ = read("deepfakebench", store_manifest(tmp_path, ffpp_manifest()), tmp_path)
    assert len(clips) == 2 * 32
    fake = next(clip for clip in clips if clip.video_id == "007_756")
    assert (fake.split, fake.label, fake.method, fake.family) == ("train", 1, "DF", "face swap")
    assert (fake.source_clip, fake.sources) == ("FF++:007", ("FF++:007", "FF++:755"))  # 756 is of 755's recording
    assert (fake.compression, fake.identity) == ("c23", None)
    assert [path.relative_to(tmp_path).as_posix() for path in fake.masks[:1]] == [
        "FaceForensics++/manipulated_sequences/Deepfakes/c23/masks/007_756/000.png"
    ]
    real = next(clip for clip in clips if clip.video_id == "000")
    assert (real.label, real.method, real.source_clip, real.sources) == (0, "real", "FF++:000", ("FF++:000",))


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    video = {"label": "DFDC_Real", "frames": [f"DFDC/a/{name}.png" for name in ("10", "2", "101", "9")]}
    tree = {"DFDC": {"DFDC_Real": {"test": {"a": video}}}}
    clips, _ = read("deepfakebench", touch(tmp_path / "set.json", json.dumps(tree)), tmp_path)
    assert [path.stem for path in clips[0].files] == ["2", "9", "10", "101"]


@pytest.mark.parametrize("separator", ["\\\\", "/"])
def test_separators_do_not_matter_and_are_counted(tmp_path: Path, separator: str) -> None:
    tree = {"DFDC": {"DFDC_Real": {"test": {"a": {"label": "DFDC_Real", "frames": ["DFDC/a/0.png", "DFDC/a/1.png"]}}}}}
    clips, notes = read("deepfakebench", store_manifest(tmp_path, tree, separator), tmp_path)
    assert clips[0].files == (tmp_path / "DFDC/a/0.png", tmp_path / "DFDC/a/1.png")
    assert sum(notes.values()) == (2 if separator != "/" else 0)


@pytest.mark.parametrize(
    ("dataset", "key", "video", "expected"),
    [
        ("Celeb-DF-v2", "CelebDFv2_fake", "id1_id9_0003", (1, "Celeb-synthesis", "Celeb-DF:id1", "Celeb-DF:id1_0003")),
        ("Celeb-DF-v1", "CelebDFv1_real", "00012", (0, "real", None, "Celeb-DF:00012")),
        ("simswap_ff", "simswap_Fake", "012_026", (1, "simswap", None, "FF++:012")),
        ("unreal_cdf", "unreal_Fake", "id2_0001", (1, "unreal", "Celeb-DF:id2", "Celeb-DF:id2_0001")),
        ("simswap_cdf", "simswap_Real", "id2_0001", (0, "real", "Celeb-DF:id2", "Celeb-DF:id2_0001")),
        ("DFDCP", "DFDCP_FakeB", "123_B_001", (1, "FakeB", None, "DFDCP:FakeB/123_B_001")),
        ("DeepFakeDetection", "DFD_fake", "01_02__kitchen_pan__YVGY8LOK", (1, "DFD", "DFD:01", "DFD:01__kitchen_pan")),
        ("DeepFakeDetection", "DFD_real", "01__kitchen_pan", (0, "real", "DFD:01", "DFD:01__kitchen_pan")),
        ("UADFV", "UADFV_Fake", "0012", (1, "UADFV", None, "UADFV:UADFV/0012")),
    ],
)  # fmt: skip
def test_the_names_of_each_dataset(tmp_path: Path, dataset: str, key: str, video: str, expected: object) -> None:
    tree = {dataset: {key: {"test": {video: {"label": key, "frames": ["a/0.png"]}}}}}
    clips, _ = read("deepfakebench", touch(tmp_path / "set.json", json.dumps(tree)))
    clip = clips[0]
    assert (clip.label, clip.method, clip.identity, clip.source_clip) == expected


def test_one_compression_is_chosen_and_the_others_are_counted(tmp_path: Path) -> None:
    levels = {level: {"000": {"label": "FF-real", "frames": [f"{level}/0.png"]}} for level in ("c23", "c40")}
    path = touch(tmp_path / "set.json", json.dumps({"FaceForensics++": {"FF-real": {"test": levels}}}))
    with pytest.raises(UserError, match="has c23 and c40: choose one with --compression"):
        read("deepfakebench", path)
    clips, notes = read("deepfakebench", path, compression="c40")
    assert [clip.files[0].parent.name for clip in clips] == ["c40"]
    assert notes == {"videos of compression c23 left out": 1}


def test_paths_may_begin_at_the_top(tmp_path: Path) -> None:
    tree = {"A": {"A_Real": {"test": {"v": {"label": "A_Real", "frames": ["/data/0.png", "more/1.png"]}}}}}
    clips, _ = read("deepfakebench", touch(tmp_path / "set.json", json.dumps(tree)), Path("/"))
    assert clips[0].files == (Path("/data/0.png"), Path("/more/1.png"))


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "..\\secret.png", "/etc/passwd"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    tree = {"DFDC": {"DFDC_Real": {"test": {"a": {"label": "DFDC_Real", "frames": [path]}}}}}
    with pytest.raises(UserError, match="leads out of"):
        read("deepfakebench", touch(tmp_path / "inside" / "set.json", json.dumps(tree)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "is no manifest of DeepfakeBench"),
        ("[1]", "is no manifest of DeepfakeBench"),
        ('{"A": {"A_Real": {"testing": {}}}}', "A, A_Real, testing"),
        ('{"A": {"A_Real": {"test": {"v": {"label": "A_Real"}}}}}', "A, A_Real, test"),
        ('{"A": {"A-youtube": {"test": {"v": {"frames": []}}}}}', "A/A-youtube is neither NAME_real nor NAME_fake"),
        ('{"A": {"unreal": {"test": {"v": {"frames": []}}}}}', "A/unreal is neither"),
        ('{"A": {"A_Real": {"test": {"c99": {"v": {"frames": []}}}}}}', "'c99' is neither a video nor one of raw"),
    ],
)
def test_what_is_no_manifest_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read("deepfakebench", touch(tmp_path / "set.json", text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_came_from_elsewhere_gets_keys_of_its_own(tmp_path: Path) -> None:
    for split, kind in (("test", "real"), ("test", "fake/swap")):
        touch(tmp_path / split / kind / "video" / "000.png")
    clips, _ = read("imagefolder", tmp_path)
    tree: dict[str, Any] = manifest(clips, "mine", tmp_path)
    assert tree == {
        "mine": {
            "mine_Real": {
                "train": {}, "val": {},
                "test": {"video": {"label": "mine_Real", "frames": ["test/real/video/000.png"], "masks": []}},
            },
            "swap_Fake": {
                "train": {}, "val": {},
                "test": {"video": {"label": "swap_Fake", "frames": ["test/fake/swap/video/000.png"], "masks": []}},
            },
        }
    }  # fmt: skip
