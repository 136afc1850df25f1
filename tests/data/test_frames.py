from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masm.data.frames import load_frames, spread_evenly
from masm.data.table import write_table
from masm.errors import UserError
from tests.data.tables import png, row


def test_frames_know_their_dataset_video_and_source(tmp_path: Path) -> None:
    rows = {
        "one": [
            row("one", method, video, frame, png(number, frame))
            for number, (method, video) in enumerate(
                [("real", "000"), ("real", "001"), ("swap", "000_001"), ("edit", "000_001"), ("swap", "001_000")]
            )
            for frame in (0, 30)
        ],
        "two": [
            row("two", "real", "000", 0, png(9), split="val"),
            row("two", "swap", "000_001", 0, png(10)),
        ],
    }
    for name in rows:
        write_table(tmp_path / name, rows[name], [])
    frames = load_frames([tmp_path / "one", tmp_path / "two"], "train")
    kept = [one for name in rows for one in rows[name] if one["split"] == "train"]
    assert list(frames.images) == [one["image"] for one in kept]
    assert frames.labels.tolist() == [one["label"] for one in kept]
    assert frames.methods.tolist() == [one["method"] for one in kept]
    for numbers, columns in (
        (frames.datasets, ["dataset"]),
        (frames.videos, ["dataset", "method", "video_id"]),
        (frames.sources, ["dataset", "source_clip"]),
    ):
        keys = [tuple(one[column] for column in columns) for one in kept]
        same = [[one == other for other in keys] for one in keys]
        assert (numbers[:, None] == numbers[None]).tolist() == same


def test_landmarks_come_with_their_frames(tmp_path: Path) -> None:
    points = {f"{video:03d}": np.float32(np.random.default_rng(video).uniform(0, 224, 10)) for video in range(6)}
    rows = [
        row("one", method, video, 0, png(*video.encode()), split=("train", "val")[number % 2], crop_landmarks=place)
        for number, (video, where) in enumerate(points.items())
        for method, place in (("real", where.tolist()), ("swap", None))
    ]
    write_table(tmp_path / "one", rows, [])
    frames = load_frames([tmp_path / "one"], "val")
    kept = [one for one in rows if one["split"] == "val"]
    assert [list(frames.images).index(one["image"]) for one in kept[::2]] == [0, 2, 4]
    for own, one in zip(frames.landmarks, kept, strict=True):
        if one["crop_landmarks"] is None:
            assert np.isnan(own).all()
        else:
            np.testing.assert_allclose(own.ravel(), one["crop_landmarks"], atol=1 / 16)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "set", [row("set", "real", str(i), 0, png(i)) for i in range(3)], [])
    with pytest.raises(UserError, match="the train split of set has 3 frames of one class"):
        load_frames([tmp_path / "set"], "train")
    with pytest.raises(UserError, match="the val split of set has 0 frames"):
        load_frames([tmp_path / "set"], "val")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 99))
def test_some_frames_of_a_video_are_spread_over_all_of_it(lengths: list[int], count: int, seed: int) -> None:
    """Defect 2 of the reference benchmark: the first 8 of 32 frames."""
    videos = np.repeat(np.arange(len(lengths)), lengths)
    indices = np.concatenate([9 * np.arange(length) for length in lengths])
    order = np.random.default_rng(seed).permutation(len(videos))
    taken = spread_evenly(videos[order], indices[order], count)
    for video, length in enumerate(lengths):
        places = np.sort(indices[order][taken & (videos[order] == video)]) // 9
        assert len(places) == min(count, length)
        assert np.ptp(np.diff([-1, *places])) <= 1  # equal parts, up to a frame
        assert places[-1] == length - 1


def test_eight_of_thirty_two() -> None:
    taken = spread_evenly(np.zeros(32, int), np.arange(32), 8)
    assert np.flatnonzero(taken).tolist() == [3, 7, 11, 15, 19, 23, 27, 31]
