"""Sampling: which frames make an epoch, balanced, in pairs of real and fake; by seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from masm.data.frames import Frames


def epoch_pairs(frames: Frames, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The frames of an epoch, in pairs of a real and a fake.

    Half of the epoch is real. In either half every dataset has the same share, and within it every method; every
    video is there at least once. A fake stands beside a real frame of its own source as far as there are such
    (known to help: GenD, WACV 2026), else beside one of its dataset. All of it is ours but that.

    Args:
        frames: of both classes.
        batch_size: the epoch is whole batches of it.
        seed, epoch: what the order depends on, and nothing else.

    Returns:
        (pairs, 2) numbers of frames, the real one first.
    """
    rng = np.random.default_rng((seed, epoch))
    count = pairs_of_epoch(frames, batch_size)
    reals, fakes = (_balanced(frames, label, count, rng) for label in (0, 1))
    return rng.permutation(_side_by_side(frames, reals, fakes))


def pairs_of_epoch(frames: Frames, batch_size: int) -> int:
    """Pairs of an epoch: all frames of the larger class, or more where a method's videos would not all have a turn.

    Rounded up to whole batches, so that nothing is left over.
    """
    needed = int(np.bincount(frames.labels).max())
    for label in (0, 1):
        datasets = _strata(frames, label)
        videos = max(len(methods) * _videos(frames, members) for methods in datasets for members in methods)
        needed = max(needed, len(datasets) * videos)
    return -(-needed // (batch_size // 2)) * (batch_size // 2)


def _videos(frames: Frames, members: np.ndarray) -> int:
    return len(np.unique(frames.videos[members]))


def _strata(frames: Frames, label: int) -> list[list[np.ndarray]]:
    """The frames of a class: those of each method of each dataset."""
    rows = pd.DataFrame({"dataset": frames.datasets, "method": frames.methods})[frames.labels == label]
    return [
        [members.index.to_numpy() for _, members in dataset.groupby("method")]
        for _, dataset in rows.groupby("dataset")
    ]


def _balanced(frames: Frames, label: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` frames of a class in random order, as many of each dataset and of each of its methods."""
    datasets = _strata(frames, label)
    drawn = []
    for methods, share in zip(datasets, _shares(count, len(datasets), rng), strict=True):
        for members, part in zip(methods, _shares(share, len(methods), rng), strict=True):
            rounds = [_shuffled(frames, members, rng) for _ in range(-(-part // len(members)))]
            drawn += [np.concatenate(rounds)[:part]] if rounds else []
    return rng.permutation(np.concatenate(drawn))


def _shares(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`count` in parts that differ by one at most; chance decides which are the larger ones."""
    return count // parts + (rng.permutation(parts) < count % parts)


def _shuffled(frames: Frames, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All of the frames in random order, but a frame of each video before all others."""
    shuffled = rng.permutation(members)
    first = np.sort(np.unique(frames.videos[shuffled], return_index=True)[1])
    return np.concatenate([shuffled[first], np.delete(shuffled, first)])


def _side_by_side(frames: Frames, reals: np.ndarray, fakes: np.ndarray) -> np.ndarray:
    """Each real with a fake (pairs, 2): of its source where there is one left, else of its dataset, else any."""
    pairs = []
    for kind in (frames.sources, frames.datasets, np.zeros_like(frames.datasets)):
        common = np.intersect1d(
            _numbered(kind[reals]), _numbered(kind[fakes]), assume_unique=True, return_indices=True
        )
        pairs.append(np.stack([reals[common[1]], fakes[common[2]]], axis=1))
        reals, fakes = np.delete(reals, common[1]), np.delete(fakes, common[2])
    return np.concatenate(pairs)


def _numbered(keys: np.ndarray) -> np.ndarray:
    """A number for each element that says its key, and how many of that key came before it."""
    return keys * (len(keys) + 1) + pd.Series(keys).groupby(keys).cumcount().to_numpy()
