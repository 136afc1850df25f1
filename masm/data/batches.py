"""Batches of training: each worker's share of every step, decoded ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from masm.data.frames import Frames
from masm.data.sampling import epoch_pairs, pairs_of_epoch
from masm.data.stored import decode, decoded, pick
from masm.errors import UserError


@dataclass(frozen=True)
class Batch:
    """One step's share of one worker.

    Attributes:
        images: (b, 3, S, S) uint8.
        labels: (b,) float32.
        samples: (b,) int64 numbers of the frames, for randomness by sample.
        blended: (b / 2,) bool; pairs, of a real and a fake side by side, whose fake is to be replaced by a self-blend
            of the real (`masm.data.selfblend`).
    """

    images: torch.Tensor
    labels: torch.Tensor
    samples: np.ndarray
    blended: np.ndarray

    @property
    def replaced(self) -> np.ndarray:
        """(b,) bool; the samples that are replaced by self-blends."""
        return np.stack([np.zeros_like(self.blended), self.blended], axis=1).ravel()

    def split(self, parts: int) -> list[Batch]:
        """Equal parts, each of whole pairs.

        Raises:
            UserError: it cannot be split so.
        """
        pairs = len(self.blended)
        if pairs % parts:
            raise UserError(
                f"accumulation = {parts} cannot take the {pairs} real-fake pairs of a worker's share of the batch in "
                f"equal parts: use a batch_size that is a multiple of {2 * parts} for each worker."
            )
        size = pairs // parts
        bounds = range(0, pairs, size)
        return [
            Batch(
                self.images[2 * start : 2 * (start + size)],
                self.labels[2 * start : 2 * (start + size)],
                self.samples[2 * start : 2 * (start + size)],
                self.blended[start : start + size],
            )
            for start in bounds
        ]


def steps_of_epoch(frames: Frames, batch_size: int) -> int:
    """Batches of an epoch."""
    return 2 * pairs_of_epoch(frames, batch_size) // batch_size


def training_batches(
    frames: Frames, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, self_blends: float = 0.0
) -> Iterator[Batch]:
    """This worker's share of every batch of an epoch.

    The batch of a step depends on (seed, epoch, step) alone, and is the same for any number of workers: worker
    `rank` takes every `world`-th pair of it. `self_blends` is the share of the fakes that are to be replaced.

    Raises:
        UserError: the batch cannot be shared evenly, or a frame is damaged.
    """
    if batch_size % (2 * world):
        raise UserError(
            f"batch_size {batch_size} cannot be shared by {world} workers in real-fake pairs: use a multiple of "
            f"{2 * world}."
        )
    steps = epoch_pairs(frames, batch_size, seed, epoch).reshape(-1, batch_size // 2, 2)
    shares = [pairs[rank::world].ravel() for pairs in steps]
    rng = np.random.default_rng((seed, epoch, len(frames)))  # neither the pairs' nor a sample's
    chance = rng.random(steps.shape[:2])
    blended = (chance < self_blends)[:, rank::world]
    for samples, images, own in zip(shares, decoded(frames.images, shares), blended, strict=True):
        yield _batch(frames, samples, images, own)


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
        samples = np.stack(drawn, axis=1)[rank::world].ravel()
        yield method, _batch(frames, samples, decode(pick(frames.images, samples)), np.zeros(len(samples) // 2, bool))


def _batch(frames: Frames, samples: np.ndarray, images: torch.Tensor, blended: np.ndarray) -> Batch:
    return Batch(images, torch.from_numpy(frames.labels[samples]).float(), samples, blended)
