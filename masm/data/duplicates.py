"""Near-duplicates among millions of perceptual hashes: every pair within a Hamming radius, without comparing all.

The 64 bits are dealt to `radius` + 2 bands. Two hashes that differ in at most `radius` bits agree in at least two
whole bands, so sorting by each choice of two bands brings every such pair together, and only neighbours that agree
there are compared (Manku et al., "Detecting near-duplicates for web crawling", WWW 2007, section 3). Exact; the
memory is a few arrays of one number per hash, however many pairs there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np

BITS = 64
AGREEING = 2
"""Whole bands in which a pair must agree: with more, fewer pairs are compared in more rounds of sorting."""


class Pairs(NamedTuple):
    """Pairs of hashes by their indices, and their Hamming distances; on each side an index stands at most once."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def near_pairs(
    hashes: np.ndarray, radius: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Pairs]:
    """Every pair of hashes at most `radius` bits apart, each once, in blocks.

    Args:
        hashes: (N,) uint64.
        radius: at most 62.
        progress: called with rounds done and rounds in all.
    """
    bands = _bands(radius + AGREEING)
    rounds = list(combinations(range(len(bands)), AGREEING))
    for number, chosen in enumerate(rounds):
        # A pair that agrees in other bands as well belongs to the first choice, and was given there.
        earlier = [bands[band] for band in range(chosen[-1]) if band not in chosen]
        yield from _pairs_that_agree(hashes, np.bitwise_or.reduce(bands[list(chosen)]), earlier, radius)
        progress(number + 1, len(rounds))


def _bands(count: int) -> np.ndarray:
    """(count,) uint64 masks that divide the bits; neighbours go to different bands, as they tend to agree."""
    bits = np.uint64(1) << np.arange(BITS, dtype=np.uint64)
    return np.array([np.bitwise_or.reduce(bits[band::count]) for band in range(count)])


def _pairs_that_agree(hashes: np.ndarray, mask: np.ndarray, earlier: list[np.ndarray], radius: int) -> Iterator[Pairs]:
    """The pairs within the radius that agree in `mask`, and in no band of `earlier`."""
    order = np.argsort(hashes & mask, kind="stable")
    ordered = hashes[order]
    keys = ordered & mask
    first = np.arange(len(hashes))
    for step in range(1, len(hashes)):  # those that agree lie side by side: compare with the next, the one after ...
        first = first[: np.searchsorted(first, len(hashes) - step)]
        first = first[keys[first] == keys[first + step]]
        if not len(first):
            return
        difference = ordered[first] ^ ordered[first + step]
        near = np.flatnonzero(np.bitwise_count(difference) <= radius)
        for band in earlier:
            near = near[(difference[near] & band) != 0]
        if len(near):
            yield Pairs(order[first[near]], order[first[near] + step], np.bitwise_count(difference[near]))


class Nearest:
    """For each hash the nearest of the pairs that were added.

    Attributes:
        index: (N,) int64, -1 where it is in none.
        distance: (N,) uint8, in bits; above 64 where it is in none.
    """

    def __init__(self, count: int) -> None:
        self.index = np.full(count, -1)
        self.distance = np.full(count, BITS + 1, np.uint8)

    def add(self, pairs: Pairs, chosen: np.ndarray) -> None:
        """Take the pairs where `chosen`, a boolean for each, is true."""
        first, second, distance = (side[chosen] for side in pairs)
        for here, there in ((first, second), (second, first)):
            closer = distance < self.distance[here]
            self.index[here[closer]] = there[closer]
            self.distance[here[closer]] = distance[closer]
