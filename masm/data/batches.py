"""Sampling and decoding: which frames make a step, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from masm.data.table import read_table, sha256
from masm.errors import UserError


@dataclass(frozen=True)
class Frames:
    """Encoded frames held in memory, with what training needs to know of each.

    Attributes:
        images: PNG or JPEG bytes.
        labels: (n,) int64, 0 real and 1 fake.
        methods: (n,) of strings.
        names: (n,) sample ids.
    """

    images: list[bytes]
    labels: np.ndarray
    methods: np.ndarray
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Batch:
    """One step's share of one worker.

    Attributes:
        images: (b, 3, S, S) uint8.
        labels: (b,) float32.
        samples: (b,) int64 numbers of the frames, for randomness by sample.
    """

    images: torch.Tensor
    labels: torch.Tensor
    samples: np.ndarray


def load_frames(tables: Sequence[Path], split: str, frames_per_video: int | None = None) -> Frames:
    """Read the frames of one split from some face tables.

    Args:
        tables: folders of face tables.
        split: train, val or test.
        frames_per_video: only frames with a smaller frame index; all where None.

    Raises:
        UserError: no frame is left, or only one class.
    """
    columns = ["image", "label", "method", "sample_id", "frame_index"]
    parts = [read_table(table, columns, split).to_pandas() for table in tables]
    rows = [row for part in parts for row in part.itertuples()]
    if frames_per_video is not None:
        rows = [row for row in rows if row.frame_index < frames_per_video]
    labels = np.array([row.label for row in rows], np.int64)
    if len(set(labels.tolist())) < 2:
        names = ", ".join(table.name for table in tables)
        raise UserError(f"the {split} split of {names} has {len(rows)} frames of one class: both classes are needed.")
    return Frames(
        images=[row.image for row in rows],
        labels=labels,
        methods=np.array([row.method for row in rows]),
        names=np.array([row.sample_id for row in rows]),
    )


def decode(images: Sequence[bytes]) -> torch.Tensor:
    """Encoded images of one size as a (n, 3, H, W) uint8 RGB tensor.

    Raises:
        UserError: one of them is damaged; none is ever left out or replaced.
    """
    arrays = []
    for image in images:
        array = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
        if array is None:
            raise UserError(f"a stored frame with sha256 {sha256(image)} is damaged: `dvc checkout` brings it back.")
        arrays.append(array)
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def epoch_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: reals and fakes by turns, the rarer class repeated until the other is through.

    Args:
        labels: (n,) 0 or 1.
        seed, epoch: what the order depends on, and nothing else.

    Returns:
        (2 x the larger class,) numbers of samples.
    """
    rng = np.random.default_rng((seed, epoch))
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    longest = max(map(len, classes))
    halves = []
    for members in classes:
        rounds = [rng.permutation(members) for _ in range(-(-longest // len(members)))]
        halves.append(np.concatenate(rounds)[:longest])
    return np.stack(halves, axis=1).ravel()


def steps_of_epoch(frames: Frames, batch_size: int) -> int:
    """Whole batches of an epoch, at least one."""
    return max(1, 2 * int(np.bincount(frames.labels, minlength=2).max()) // batch_size)


def training_batches(
    frames: Frames, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """This worker's share of every batch of an epoch.

    The batch of a step is the same for any number of workers; worker `rank` takes every `world`-th sample
    pair of it. What does not fill a batch is left to another epoch, whose order differs.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    if batch_size % (2 * world):
        raise UserError(
            f"train.batch_size {batch_size} cannot be shared by {world} workers in real-fake pairs: use a multiple of "
            f"{2 * world}."
        )
    order = epoch_order(frames.labels, seed, epoch)
    for step in range(steps_of_epoch(frames, batch_size)):
        pairs = order[step * batch_size : (step + 1) * batch_size].reshape(-1, 2)
        yield _take(frames, pairs[rank::world].ravel())


def method_batches(
    frames: Frames, batch_size: int, seed: int, draw: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[str, Batch]]:
    """This worker's share of one batch of each forgery method, with equally many reals, in the methods' order.

    Samples are drawn without repeats where there are enough; `seed` and `draw` decide which.
    """
    pairs = batch_size // 2
    reals = np.flatnonzero(frames.labels == 0)
    for index, method in enumerate(sorted(set(frames.methods[frames.labels == 1].tolist()))):
        rng = np.random.default_rng((seed, draw, index))
        fakes = np.flatnonzero((frames.labels == 1) & (frames.methods == method))
        drawn = [np.resize(rng.permutation(members), pairs) for members in (reals, fakes)]
        yield method, _take(frames, np.stack(drawn, axis=1)[rank::world].ravel())


def _take(frames: Frames, samples: np.ndarray) -> Batch:
    return Batch(
        images=decode([frames.images[i] for i in samples]),
        labels=torch.from_numpy(frames.labels[samples]).float(),
        samples=samples,
    )
