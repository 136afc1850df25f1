from __future__ import annotations

import numpy as np
import pytest

from masm.data.duplicates import Nearest, near_pairs


def hashes_in_clusters(count: int, seed: int) -> np.ndarray:
    """Hashes of which many are a few bits apart, and some the same."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, count // 8, dtype=np.uint64)
    flips = rng.integers(0, 64, (count, 6))
    kept = rng.random((count, 6)) < rng.choice([0, 0.3, 0.7], (count, 1))
    noise = np.bitwise_xor.reduce(np.where(kept, np.uint64(1) << flips.astype(np.uint64), np.uint64(0)), axis=1)
    return rng.choice(centres, count) ^ noise


def brute_force(hashes: np.ndarray, radius: int) -> dict[tuple[int, int], int]:
    values = [int(value) for value in hashes]
    return {
        (i, j): distance
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if (distance := (values[i] ^ values[j]).bit_count()) <= radius
    }


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 7, 16])
def test_every_pair_within_the_radius_is_given_once(radius: int) -> None:
    hashes = hashes_in_clusters(400, seed=radius)
    found: list[tuple[tuple[int, int], int]] = []
    for pairs in near_pairs(hashes, radius):
        assert len(np.unique(pairs.first)) == len(np.unique(pairs.second)) == len(pairs.first)
        ends = np.sort(np.stack([pairs.first, pairs.second], axis=1), axis=1)
        found += [((int(i), int(j)), int(distance)) for (i, j), distance in zip(ends, pairs.distance, strict=True)]
    expected = brute_force(hashes, radius)
    assert len(expected) > 30
    assert len(found) == len(expected)
    assert dict(found) == expected


def test_one_value_a_thousand_times() -> None:
    pairs = sum(len(block.first) for block in near_pairs(np.full(1000, 7, np.uint64), 2))
    assert pairs == 1000 * 999 // 2


@pytest.mark.parametrize("count", [0, 1])
def test_there_is_no_pair_among_fewer_than_two(count: int) -> None:
    assert list(near_pairs(np.zeros(count, np.uint64), 2)) == []


def test_nearest_is_the_closest_of_another_group() -> None:
    hashes = hashes_in_clusters(300, seed=1)
    group = np.random.default_rng(2).integers(0, 3, 300)
    nearest = Nearest(300)
    for pairs in near_pairs(hashes, 6):
        nearest.add(pairs, group[pairs.first] != group[pairs.second])
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None]).astype(int)
    distances[group[:, None] == group[None]] = 99
    closest = distances.min(axis=1)
    assert ((nearest.index >= 0) == (closest <= 6)).all()
    hit = np.flatnonzero(nearest.index >= 0)
    assert 100 < len(hit) < 300
    assert (nearest.distance[hit] == closest[hit]).all()
    assert (distances[hit, nearest.index[hit]] == closest[hit]).all()


def test_rounds_are_counted() -> None:
    seen: list[tuple[int, int]] = []
    list(near_pairs(hashes_in_clusters(16, 0), 2, lambda done, total: seen.append((done, total))))
    assert seen == [(done, 6) for done in range(1, 7)]  # two of four bands
