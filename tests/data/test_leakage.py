from __future__ import annotations

from pathlib import Path

import pytest

from masm.data.camera import compress, decompress
from masm.data.index import Clip
from masm.data.leakage import look_alikes, read_frames, same_images, shared_names
from masm.data.procedural import draw_face
from masm.data.table import perceptual_hash, write_table
from masm.settings import Settings
from tests.data.importers.trees import STRADDLING, ffpp_tree, read
from tests.data.tables import DATASETS, FRAMES, Row, make_settings, named_row, sound_rows, write_tables

RADIUS = 2
LEAKED = "learn-train-0"


def leaks(settings: Settings, radius: int = RADIUS) -> dict[str, list[str]]:
    frames = read_frames(settings)
    found = shared_names(settings) | {"image": same_images(frames)}
    return found | look_alikes(frames, radius, lambda done, total: None)


def found_by(found: dict[str, list[str]]) -> set[str]:
    return {check for check, texts in found.items() if texts}


def test_sound_tables_share_nothing(tmp_path: Path) -> None:
    """The two test datasets have the same recordings, as made datasets do."""
    settings = make_settings(tmp_path)
    write_tables(settings)
    assert found_by(leaks(settings)) == set()


@pytest.mark.parametrize(
    ("columns", "check", "name"),
    [
        ({"identity": f"person of {LEAKED}"}, "person", f"person of {LEAKED}"),
        ({"source_clip": LEAKED}, "recording", LEAKED),
        ({"sources": ["judge-test-0", LEAKED]}, "recording", LEAKED),
    ],
)
def test_a_name_in_two_roles_is_found(tmp_path: Path, columns: Row, check: str, name: str) -> None:
    settings = make_settings(tmp_path)
    write_tables(settings, lambda found: columns if found["sample_id"] == "judge/swap/judge-test-0/0" else {})
    found = leaks(settings)
    assert found_by(found) == {check}
    assert found[check] == [f"{name} is in test/test (judge) and train/train (learn)"]


def test_a_video_in_two_splits_of_its_dataset_is_found(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    write_tables(settings, lambda found: {"split": "val"} if found["sample_id"] == f"learn/real/{LEAKED}/0" else {})
    assert leaks(settings)["video"] == [f"learn/real/{LEAKED} is in train/train (learn) and train/val (learn)"]


def test_a_person_whom_nobody_names_is_not_a_person(tmp_path: Path) -> None:
    """There the recording stands for the person, and is found as a recording."""
    settings = make_settings(tmp_path)
    write_tables(settings, lambda found: {"source_clip": "same", "identity": "same", "sources": ["same"]})
    assert leaks(settings)["person"] == []
    assert [text.split()[0] for text in leaks(settings)["recording"]] == ["same"]


def clip_rows(clip: Clip, dataset: str) -> list[Row]:
    names = {
        "label": clip.label,
        "video_id": clip.video_id,
        "sources": list(clip.sources),
        "source_clip": clip.source_clip,
        "identity": clip.identity or clip.source_clip,
    }
    return [named_row(dataset, clip.split, clip.video_id, clip.method, frame) | names for frame in range(FRAMES)]


def test_the_recordings_that_straddle_the_official_split_of_faceforensics_are_found(tmp_path: Path) -> None:
    """755/756 and 954/955 between train and test, five pairs between train and val."""
    settings = make_settings(tmp_path, {name: DATASETS[name] for name in ("learn", "judge")})
    clips, _ = read("ffpp", ffpp_tree(tmp_path / "tree"))
    for dataset, splits in (("learn", ("train", "val")), ("judge", ("test",))):
        rows = [line for clip in clips if clip.split in splits for line in clip_rows(clip, dataset)]
        write_table(settings.table(dataset), rows, [])
    found = leaks(settings)
    assert found_by(found) == {"recording"}
    places = {"train": "train/train (learn)", "val": "train/val (learn)", "test": "test/test (judge)"}
    assert set(found["recording"]) == {
        f"{name} is in {' and '.join(sorted(places[split] for split in splits))}"
        for name, splits in STRADDLING.items()
    }


def test_the_same_bytes_in_two_roles_are_found(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    digests = [found["sha256"] for found in sound_rows("learn") if found["source_clip"] == LEAKED]
    write_tables(
        settings,
        lambda found: {"sha256": digests[found["frame_index"]]} if found["video_id"] == "judge-test-1" else {},
    )
    found = leaks(settings)
    assert found_by(found) == {"image"}
    # Equal bytes within one place are no leak.
    assert found["image"] == [
        f"judge-test-1 (judge, test/test) and {LEAKED} (learn, train/train) have 2 images byte for byte"
    ]


def portrait_hash(person: int, photograph: int, quality: int | None = None) -> str:
    image = draw_face(3, person, photograph, 96).image
    return perceptual_hash(image if quality is None else decompress(compress(image, quality)))


def test_a_photograph_saved_anew_under_another_name_is_found(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)

    def change(found: Row) -> Row:
        if found["source_clip"] == LEAKED:
            return {"phash": portrait_hash(0, found["frame_index"])}
        if found["sample_id"].startswith("judge/real/judge-test-2/"):
            return {"phash": portrait_hash(0, found["frame_index"], quality=60)}
        if found["sample_id"].startswith("judge/real/judge-test-3/"):
            return {"phash": portrait_hash(1, found["frame_index"])}  # somebody else
        return {}

    write_tables(settings, change)
    found = leaks(settings)
    assert found_by(found) == {"near_duplicate"}
    assert [text.split(" look alike")[0] for text in found["near_duplicate"]] == [
        f"judge-test-2 (judge, test/test) and {LEAKED} (learn, train/train)"
    ]


@pytest.mark.parametrize(("frames", "found"), [(1, False), (2, True)])
def test_half_of_a_videos_frames_must_look_alike(tmp_path: Path, frames: int, found: bool) -> None:
    """Four frames in each video: one that looks like another person's is chance."""
    settings = make_settings(tmp_path, {name: DATASETS[name] for name in ("learn", "judge")})
    for dataset, split in (("learn", "train"), ("judge", "test")):
        rows = [named_row(dataset, split, dataset, "real", frame) for frame in range(4)]
        for line in rows[:frames]:
            line["phash"] = f"{line['frame_index']:016x}"
        write_table(settings.table(dataset), rows, [])
    assert bool(leaks(settings, radius=0)["near_duplicate"]) == found


def test_a_recording_copied_into_two_datasets_counts_once(tmp_path: Path) -> None:
    """Two of six frames have a copy in one test set, two others in another: four of six look like the recording."""
    settings = make_settings(tmp_path, {name: DATASETS[name] for name in ("learn", "judge", "again")})
    copied = {"learn": range(4), "judge": range(2), "again": range(2, 4)}
    for dataset, split in (("learn", "train"), ("judge", "test"), ("again", "test")):
        rows = [named_row(dataset, split, "copy" if split == "test" else LEAKED, "real", frame) for frame in range(6)]
        for frame in copied[dataset]:
            rows[frame]["phash"] = f"{frame:016x}"
        write_table(settings.table(dataset), rows, [])
    (found,) = leaks(settings, radius=0)["near_duplicate"]
    assert "copy (" in found
    assert f"{LEAKED} (learn, train/train)" in found


@pytest.mark.parametrize(("recording", "checks"), [("judge-test-0", set()), ("copied", {"repetition"})])
def test_look_alikes_in_one_place_count_where_the_recordings_have_different_names(
    tmp_path: Path, recording: str, checks: set[str]
) -> None:
    """Datasets made of the same photographs are to look alike; two collections with one video are not."""
    settings = make_settings(tmp_path)
    named = {"source_clip": recording, "sources": [recording]}

    def change(found: Row) -> Row:
        alike = {"phash": f"{found['frame_index'] + 1:016x}"} if found["video_id"] == "judge-test-0" else {}
        return alike | (named if alike and found["dataset"] == "again" else {})

    write_tables(settings, change)
    assert found_by(leaks(settings)) == checks


def test_blank_images_everywhere_take_no_quadratic_time(tmp_path: Path) -> None:
    """All look alike, which is said of each recording once or a few times, not for each pair of frames."""
    settings = make_settings(tmp_path)
    write_tables(settings, lambda found: {"phash": "0" * 16})
    found = leaks(settings)
    frames = read_frames(settings)
    assert 1 <= len(found["near_duplicate"]) <= len(frames.phash)


def test_frames_without_hashes_are_left_to_the_check_of_the_table(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    damaged = {"judge/real/judge-test-0/0": {"phash": None}, "judge/real/judge-test-0/1": {"sha256": "no digest"}}
    write_tables(settings, lambda found: damaged.get(found["sample_id"], {}))
    frames = read_frames(settings)
    assert len(frames.phash) == sum(len(sound_rows(name)) for name in settings.datasets) - 2
    write_tables(settings, lambda found: {"phash": None})
    assert found_by(leaks(settings)) == set()
