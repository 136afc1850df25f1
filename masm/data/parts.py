"""Parts of face tables: some rows of one shard that are scored together, as they are stored or distorted.

What a killed scoring has done are whole parts. They are read batch by batch, and the index of one shard is all of a
table that is in memory besides, so that a million frames take no more of it than a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from masm.data.distort import CLEAN, LEVELS, distort, distort_video
from masm.data.stored import StoredImages, decode, shard_images
from masm.data.table import read_rows, read_shards, table_shards
from masm.settings import Robustness, Settings

PART_ROWS = 2048
"""Frames of a part, about: minutes of work for a large backbone on a CPU, and worth a file for a small one."""
JUDGED_LEVELS = 5
"""Levels of a kind of distortion that frames are scored under, or all where it has fewer."""
CLIP = ["method", "video_id"]


@dataclass(frozen=True)
class Part:
    """Frames that are scored together.

    Attributes:
        dataset: whose they are.
        shard: its number in the face table.
        rows: their numbers in the shard.
        distortion: a kind of `masm.data.distort`, or CLEAN.
        level: of the distortion, from 1 on; 0 for CLEAN.
    """

    dataset: str
    shard: int
    rows: Sequence[int]
    distortion: str = CLEAN
    level: int = 0

    @property
    def name(self) -> str:
        """Of its file: no two parts of a plan have the same."""
        return f"{self.dataset}-{self.distortion}-{self.level}-{self.shard:05d}-{self.rows[0]:08d}"

    def path(self, settings: Settings) -> Path:
        """The shard's file."""
        return table_shards(settings.table(self.dataset))[self.shard]


@dataclass(frozen=True)
class Batch:
    """Frames of a part that pass the detector together.

    Attributes:
        part: theirs.
        images: encoded.
        samples: their `sample_id`.
        clips: the first frame of each clip among them, and their number at the end.
        last: whether the part ends here.
    """

    part: Part
    images: Sequence[bytes]
    samples: Sequence[str]
    clips: Sequence[int]
    last: bool

    def load(self, seed: int) -> torch.Tensor:
        """The frames (n, 3, S, S) uint8 RGB, distorted where the part is; `seed` is that of all distortions.

        Raises:
            UserError: a frame is damaged, or the distortion needs PyAV, which is missing.
        """
        pixels = decode(self.images)
        if self.part.distortion == CLEAN:
            return pixels
        frames = pixels.permute(0, 2, 3, 1).numpy()
        return torch.from_numpy(np.stack(list(self._distorted(frames, seed)))).permute(0, 3, 1, 2)

    def _distorted(self, frames: np.ndarray, seed: int) -> Iterable[np.ndarray]:
        """The frames (n, S, S, 3), each with chance of its own; H.264 sees the frames of a clip together."""
        kind, level = self.part.distortion, self.part.level
        if kind != "h264":
            return (distort(frame, kind, level, seed, name) for frame, name in zip(frames, self.samples, strict=True))
        clips = ((frames[first:end], self.samples[first]) for first, end in pairwise(self.clips))
        return chain.from_iterable(distort_video(list(clip), kind, level, seed, name) for clip, name in clips)


def plan(settings: Settings, datasets: Sequence[str], distorted: bool = False) -> list[Part]:
    """Parts that hold every frame of some datasets once, and distorted ones where they are asked for.

    Args:
        settings: where the face tables are, the batch size, and which distortions of how many frames.
        datasets: names of datasets; their parts lie together.
        distorted: whether `evaluate.robustness` is asked for.

    Raises:
        UserError: a table is missing or damaged.
    """
    parts: list[Part] = []
    for name in datasets:
        parts += _stored_parts(settings, name)
        if distorted and settings.evaluate.robustness.frames:
            parts += _distorted_parts(settings, name)
    return parts


def _stored_parts(settings: Settings, dataset: str) -> Iterator[Part]:
    batch = settings.evaluate.batch_size
    step = max(1, PART_ROWS // batch) * batch
    for shard, path in enumerate(table_shards(settings.table(dataset))):
        count = pq.read_metadata(path).num_rows
        for first in range(0, count, step):
            yield Part(dataset, shard, range(first, min(first + step, count)))


def _distorted_parts(settings: Settings, dataset: str) -> Iterator[Part]:
    robustness = settings.evaluate.robustness
    chosen = sorted(_spread_clips(settings.table(dataset), robustness))
    for kind in robustness.kinds:
        for level in range(1, 1 + min(JUDGED_LEVELS, len(LEVELS[kind]))):
            for shard, clips in groupby(chosen, key=lambda clip: clip[0]):
                rows = [clip for _, clip in clips]
                for first, end in pairwise(_cuts([len(clip) for clip in rows], PART_ROWS)):
                    yield Part(dataset, shard, tuple(chain.from_iterable(rows[first:end])), kind, level)


Clip = tuple[int, tuple[int, ...]]
"""A video's shard, and the rows of its frames in it; one that goes on in the next shard is two clips."""


def _spread_clips(table: Path, robustness: Robustness) -> Iterator[Clip]:
    """Clips of each method, evenly spread over the table, that hold about as many frames as asked for; one at least.

    They have all their frames, or `frames_per_video` that are evenly spread over them.
    """
    clips: dict[str, list[tuple[int, np.ndarray]]] = {}
    for shard, facts in enumerate(read_shards(table, CLIP)):
        for (method, _), rows in facts.to_pandas().groupby(CLIP, sort=False).indices.items():
            taken = rows[_evenly(len(rows), robustness.frames_per_video or len(rows))]
            clips.setdefault(method, []).append((shard, taken.astype(np.int32)))
    for own in clips.values():
        total = sum(len(rows) for _, rows in own)
        for index in _evenly(len(own), max(1, round(robustness.frames * len(own) / total))).tolist():
            shard, rows = own[index]
            yield shard, tuple(rows.tolist())


def _evenly(length: int, count: int) -> np.ndarray:
    """`count` of `length` places from the first to the last, or all where there are fewer."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int)


def _cuts(lengths: Sequence[int], limit: int) -> list[int]:
    """Where to cut a row of pieces so that each group holds `limit` at most, or a single longer piece: 0, ..., n."""
    cuts, held = [0], 0
    for index, length in enumerate(lengths):
        if held and held + length > limit:
            cuts.append(index)
            held = 0
        held += length
    return [*cuts, len(lengths)]


def batches(settings: Settings, parts: Iterable[Part]) -> Iterator[Batch]:
    """The frames of some parts, in order, in batches of `evaluate.batch_size`; H.264's clips stay whole.

    Raises:
        UserError: a table is missing or damaged.
    """
    for _, own in groupby(parts, key=lambda part: (part.dataset, part.shard)):
        first = next(own)
        path = first.path(settings)
        images = shard_images([path])
        for part in chain([first], own):
            yield from _part_batches(part, path, images, settings.evaluate.batch_size)


def _part_batches(part: Part, shard: Path, images: StoredImages, limit: int) -> Iterator[Batch]:
    """The batches of a part, of `limit` frames or of whole clips; `images` are all of the shard's."""
    facts, rows = read_rows(shard, part.rows, ["sample_id", *CLIP]), np.asarray(part.rows)
    samples = facts["sample_id"].to_pylist()
    clips = _clip_ends(facts) if part.distortion == "h264" else np.arange(len(rows) + 1)
    for first, end in pairwise(_cuts(np.diff(clips).tolist(), limit)):
        taken, own = slice(clips[first], clips[end]), clips[first : end + 1] - clips[first]
        yield Batch(part, images.take(rows[taken]), samples[taken], own.tolist(), last=clips[end] == len(rows))


def _clip_ends(facts: pa.Table) -> np.ndarray:
    """Where a row of frames, with the columns CLIP, changes to another clip: 0, ..., n."""
    keys = facts.to_pandas()[CLIP]
    changes = np.flatnonzero((keys != keys.shift()).any(axis=1))  # the first row differs from nothing
    return np.append(changes, len(keys))
