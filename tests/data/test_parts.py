from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masm.data import parts as module
from masm.data import table
from masm.data.distort import CLEAN, distort, distort_video
from masm.data.parts import Batch, Part, batches, plan
from masm.data.stored import decode
from masm.data.table import read_rows, read_table, table_shards, write_table
from masm.errors import UserError
from masm.settings import Settings
from tests.data.tables import FORGED, make_settings, png, row

LENGTHS = {"real": (3, 5, 2, 4, 3, 3, 1, 4), "swap": (4, 4, 4, 4), "reenact": (9, 1)}
"""Frames of each video of a method."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A test dataset whose methods are interleaved, in several shards of small row groups."""
    monkeypatch.setattr(table, "SHARD_BYTES", 30_000)
    monkeypatch.setattr(table, "ROW_GROUP", 4)
    monkeypatch.setattr(module, "PART_ROWS", 9)
    robustness = {"kinds": ["noise", "resize"], "frames": 8}
    made = make_settings(
        tmp_path, {"judge": {"role": "test", **FORGED}}, evaluate__robustness=robustness, evaluate__batch_size=4
    )
    rows = [
        row("judge", method, f"v{video}", frame, png(video, frame, len(method), side=24), split="test")
        for video in range(8)
        for method, lengths in LENGTHS.items()
        if video < len(lengths)
        for frame in range(lengths[video])
    ]
    write_table(made.table("judge"), rows, [])
    assert len(table_shards(made.table("judge"))) > 2
    return made


def facts(settings: Settings, part: Part) -> list[dict[str, Any]]:
    return read_rows(part.path(settings), part.rows, ["sample_id", "method", "video_id"]).to_pylist()


def test_rows_of_a_shard_come_in_the_order_asked_for(settings: Settings) -> None:
    shard = table_shards(settings.table("judge"))[0]
    expected = read_table(settings.table("judge"), ["sample_id", "image"]).to_pylist()
    for rows in ([5, 0, 5, 11], range(3, 9), (2,)):
        assert read_rows(shard, rows, ["sample_id", "image"]).to_pylist() == [expected[index] for index in rows]
    with pytest.raises(UserError, match=r"faces-00000\.parquet is damaged"):
        read_rows(shard, [10_000], ["sample_id"])


def test_parts_hold_every_row_once_and_in_order(settings: Settings) -> None:
    parts = plan(settings, ["judge"])
    assert {(part.distortion, part.level) for part in parts} == {(CLEAN, 0)}
    names = [fact["sample_id"] for part in parts for fact in facts(settings, part)]
    assert names == read_table(settings.table("judge"), ["sample_id"])["sample_id"].to_pylist()
    assert max(len(part.rows) for part in parts) == 8  # whole batches of 4, no more than 9
    assert len({part.name for part in parts}) == len(parts)


def test_distorted_parts_hold_the_same_whole_clips_of_each_method_at_every_level(settings: Settings) -> None:
    parts = plan(settings, ["judge"], distorted=True)
    assert len({part.name for part in parts}) == len(parts)
    held: dict[tuple[str, int], list[str]] = {}
    for part in parts[len(plan(settings, ["judge"])) :]:
        held.setdefault((part.distortion, part.level), []).extend(fact["sample_id"] for fact in facts(settings, part))
    assert list(held) == [*(("noise", level) for level in range(1, 6)), *(("resize", level) for level in range(1, 4))]
    first = held["noise", 1]
    assert all(names == first for names in held.values())
    assert len(set(first)) == len(first)
    videos = Counter(tuple(name.split("/")[1:3]) for name in first)
    shards = [read_rows(path, range(5), ["sample_id"]) for path in table_shards(settings.table("judge"))[1:]]
    cut = {tuple(shard["sample_id"][0].as_py().split("/")[1:3]) for shard in shards}  # may go on from the shard before
    for (method, video), frames in videos.items():
        assert frames == LENGTHS[method][int(video[1:])] or (method, video) in cut
    of_method = {method: sorted(video for own, video in videos if own == method) for method in LENGTHS}
    assert of_method["real"][0] == "v0"
    assert of_method["real"][-1] == "v7"  # spread from the first to the last
    assert len(of_method["swap"]) == 2
    assert len(of_method["reenact"]) >= 1


def test_few_frames_of_each_video_make_more_videos(settings: Settings) -> None:
    robustness = settings.evaluate.robustness.model_copy(update={"frames_per_video": 2, "kinds": ("blur",)})
    changed = settings.model_copy(
        update={"evaluate": settings.evaluate.model_copy(update={"robustness": robustness, "batch_size": 100})}
    )
    parts = [part for part in plan(changed, ["judge"], distorted=True) if part.level == 1]
    names = [fact["sample_id"].split("/") for part in parts for fact in facts(changed, part)]
    taken = {(method, video): [] for _, method, video, _ in names}
    for _, method, video, frame in names:
        taken[method, video].append(int(frame))
    assert sum(method == "swap" for method, _ in taken) >= 3  # two where they are whole
    assert taken["swap", "v0"] == [0, 3]
    assert max(map(len, taken.values())) <= 4  # two of either part of a video that two shards share


def pixels_of(batch: Batch) -> np.ndarray:
    return batch.load(seed=3).permute(0, 2, 3, 1).numpy()


def stored(settings: Settings) -> dict[str, np.ndarray]:
    rows = read_table(settings.table("judge"), ["sample_id", "image"])
    images = decode(rows["image"].to_pylist()).permute(0, 2, 3, 1).numpy()
    return dict(zip(rows["sample_id"].to_pylist(), images, strict=True))


def test_batches_hold_the_frames_as_stored_or_distorted_each_by_its_name(settings: Settings) -> None:
    expected, seen = stored(settings), 0
    for batch in batches(settings, plan(settings, ["judge"], distorted=True)):
        assert len(batch.samples) <= 4
        part = batch.part
        for name, pixels in zip(batch.samples, pixels_of(batch), strict=True):
            image = expected[name]
            if part.distortion != CLEAN:
                image = distort(image, part.distortion, part.level, 3, name)
            assert (pixels == image).all()
        seen += len(batch.samples)
    assert seen == sum(len(part.rows) for part in plan(settings, ["judge"], distorted=True))


def test_h264_sees_the_frames_of_a_clip_together(settings: Settings) -> None:
    pytest.importorskip("av")
    robustness = settings.evaluate.robustness.model_copy(update={"kinds": ("h264",)})
    evaluate = settings.evaluate.model_copy(update={"robustness": robustness})
    changed, expected, longest = settings.model_copy(update={"evaluate": evaluate}), stored(settings), 0
    for batch in batches(changed, plan(changed, ["judge"], distorted=True)[-4:]):
        keys = [name.rsplit("/", 1)[0] for name in batch.samples]
        found, first = pixels_of(batch), 0
        for _, own in groupby(keys):
            end = first + len(list(own))
            frames = [expected[name] for name in batch.samples[first:end]]
            assert (found[first:end] == distort_video(frames, "h264", batch.part.level, 0, "")).all()
            longest, first = max(longest, len(frames)), end
    assert longest > 4  # a clip is not cut where a batch would end


def test_without_frames_nothing_is_distorted(settings: Settings) -> None:
    robustness = settings.evaluate.robustness.model_copy(update={"frames": 0})
    evaluate = settings.evaluate.model_copy(update={"robustness": robustness})
    changed = settings.model_copy(update={"evaluate": evaluate})
    assert plan(changed, ["judge"], distorted=True) == plan(settings, ["judge"])
