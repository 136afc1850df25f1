"""What training knows of the frames of some face tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from masm.data.images import stored_images
from masm.data.table import read_table
from masm.errors import UserError

COLUMNS = ["split", "label", "dataset", "method", "video_id", "source_clip", "frame_index"]


@dataclass(frozen=True)
class Frames:
    """Frames of some face tables; equal numbers mean the same dataset, video or source.

    Attributes:
        images: encoded; read from the tables when they are asked for.
        labels: (n,) int64, 0 real and 1 fake.
        methods: (n,) of strings.
        datasets: (n,) int64.
        videos: (n,) int64; a video is (dataset, method, video_id).
        sources: (n,) int64; the real recording that is shown, (dataset, source_clip): a fake's is that of its real.
    """

    images: Sequence[bytes]
    labels: np.ndarray
    methods: np.ndarray
    datasets: np.ndarray
    videos: np.ndarray
    sources: np.ndarray

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
    parts = [read_table(table, COLUMNS) for table in tables]
    rows = pa.concat_tables(parts).to_pandas(strings_to_categorical=True)
    rows = rows[rows["split"] == split]
    if frames_per_video is not None:
        rows = rows[spread_evenly(_numbers(rows, "video_id"), rows["frame_index"].to_numpy(), frames_per_video)]
    if rows["label"].nunique() < 2:
        names = ", ".join(table.name for table in tables)
        raise UserError(f"the {split} split of {names} has {len(rows)} frames of one class: both classes are needed.")
    return Frames(
        images=stored_images(tables).take(rows.index.to_numpy()),
        labels=rows["label"].to_numpy(np.int64),
        methods=np.array(rows["method"].cat.categories, object)[rows["method"].cat.codes.to_numpy()],  # shared strings
        datasets=_numbers(rows, "dataset"),
        videos=_numbers(rows, "dataset", "method", "video_id"),
        sources=_numbers(rows, "dataset", "source_clip"),
    )


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


def _numbers(rows: pd.DataFrame, *columns: str) -> np.ndarray:
    """A number (n,) for each distinct combination of values."""
    return rows.groupby(list(columns), observed=True, dropna=False, sort=False).ngroup().to_numpy(np.int64)
