"""What training knows of the frames of some face tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from masm.data.stored import Images, stored_images
from masm.data.table import read_shards
from masm.errors import UserError

KEYS = {
    "datasets": ["dataset"],
    "methods": ["method"],
    "videos": ["dataset", "method", "video_id"],
    "sources": ["dataset", "source_clip"],
}
COLUMNS = ["split", "label", "dataset", "method", "video_id", "source_clip", "frame_index"]
LANDMARKS = "crop_landmarks"


@dataclass(frozen=True)
class Frames:
    """Frames of some face tables; equal numbers mean the same dataset, video or source.

    Attributes:
        images: read from the tables when they are asked for, or decoded already.
        labels: (n,) int64, 0 real and 1 fake.
        methods: (n,) of strings.
        datasets: (n,) int64.
        videos: (n,) int64; a video is (dataset, method, video_id).
        sources: (n,) int64; the real recording that is shown, (dataset, source_clip): a fake's is that of its real.
        landmarks: (n, 5, 2) float16 pixels of the image, as `masm.data.faces.Face` has them first; NaN without. Half
            precision is an eighth of a pixel at 224, and a megabyte for 50,000 frames.
        dataset_names: by the datasets' numbers.
    """

    images: Images
    labels: np.ndarray
    methods: np.ndarray
    datasets: np.ndarray
    videos: np.ndarray
    sources: np.ndarray
    landmarks: np.ndarray
    dataset_names: tuple[str, ...] = ("",)

    def __len__(self) -> int:
        return len(self.images)


def load_frames(tables: Sequence[Path], split: str, frames_per_video: int | None = None) -> Frames:
    """The frames of one split of some face tables.

    Args:
        tables: folders of face tables.
        split: train, val or test.
        frames_per_video: that many frames of each video at most, spread evenly over it; all where None.

    Raises:
        UserError: no frame is left, or only one class.
    """
    numbers = {name: _Numbers() for name in KEYS}
    parts, before = [], 0
    for shard in chain.from_iterable(read_shards(table, [*COLUMNS, LANDMARKS]) for table in tables):
        rows = shard.drop_columns([LANDMARKS]).to_pandas(strings_to_categorical=True)
        rows = rows[rows["split"] == split]
        facts = {name: numbers[name].of(rows, columns) for name, columns in KEYS.items()}
        facts |= {name: rows[name].to_numpy(np.int64) for name in ("label", "frame_index")}
        facts["landmarks"] = _landmarks(shard[LANDMARKS])[rows.index]
        parts.append(facts | {"row": rows.index.to_numpy() + before})
        before += len(shard)
    facts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if frames_per_video is not None:
        taken = spread_evenly(facts["videos"], facts["frame_index"], frames_per_video)
        facts = {name: values[taken] for name, values in facts.items()}
    if len(np.unique(facts["label"])) < 2:
        names, count = ", ".join(table.name for table in tables), len(facts["label"])
        raise UserError(f"the {split} split of {names} has {count} frames of one class: both classes are needed.")
    return Frames(
        images=stored_images(tables).take(facts["row"]),
        labels=facts["label"],
        methods=np.array(list(numbers["methods"]), object)[facts["methods"]],  # strings that are shared
        datasets=facts["datasets"],
        videos=facts["videos"],
        sources=facts["sources"],
        landmarks=facts["landmarks"],
        dataset_names=tuple(numbers["datasets"]),
    )


def _landmarks(column: pa.ChunkedArray) -> np.ndarray:
    """(n, 5, 2) float16, NaN where there are none."""
    points = np.full((len(column), 10), np.nan, np.float16)
    known = column.is_valid().to_numpy()
    points[known] = column.combine_chunks().flatten().to_numpy().reshape(-1, 10)
    return points.reshape(-1, 5, 2)


class _Numbers(dict[Any, int]):
    """A number for each distinct key, in the order in which they appear."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self)
        return self[key]

    def of(self, rows: pd.DataFrame, columns: list[str]) -> np.ndarray:
        """The numbers (n,) of the rows' values in some columns."""
        groups = rows.groupby(columns, observed=True, dropna=False, sort=False)
        known = np.array([self[key] for key in groups.size().index], np.int64)
        return known[groups.ngroup().to_numpy()]


def spread_evenly(videos: np.ndarray, frame_indices: np.ndarray, count: int) -> np.ndarray:
    """Which frames to take for `count` of each video, or all where it has fewer.

    A video's frames, in the order of their indices, are cut into `count` parts that differ by one frame at most,
    and the last of each part is taken.

    Args:
        videos: (n,) numbers of the videos.
        frame_indices: (n,) places of the frames in their videos.

    Returns:
        (n,) bool.
    """
    rows = pd.DataFrame({"video": videos, "index": frame_indices}).groupby("video")["index"]
    place, frames = rows.rank(method="first").to_numpy(np.int64), rows.transform("size").to_numpy()
    return place * count // frames > (place - 1) * count // frames
