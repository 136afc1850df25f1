from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from masm.data.tracking import LEAST_OVERLAP, choose_track, intersection_over_union, track_faces


def box(x: float, y: float, width: float = 20, height: float = 30) -> np.ndarray:
    return np.float32([x, y, width, height])


def test_overlap_is_that_of_the_painted_boxes() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.column_stack([rng.integers(0, 30, (6, 2)), rng.integers(1, 25, (6, 2))]) for _ in range(2))
    found = intersection_over_union(first.astype(float), second.astype(float))
    for row, a in enumerate(first):
        for column, b in enumerate(second):
            painted = np.zeros((2, 60, 60), bool)
            for layer, (x, y, width, height) in zip(painted, (a, b), strict=True):
                layer[y : y + height, x : x + width] = True
            expected = painted.all(axis=0).sum() / painted.any(axis=0).sum()
            assert found[row, column] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_links_are_the_best_of_all_assignments(seed: int) -> None:
    """Against every permutation of four faces that stand close together."""
    rng = np.random.default_rng(seed)
    before = [box(*rng.uniform(0, 30, 2)) for _ in range(4)]
    after = [box(*rng.uniform(0, 30, 2)) for _ in range(4)]
    overlaps = intersection_over_union(np.stack(before).astype(float), np.stack(after).astype(float))
    overlaps[overlaps < LEAST_OVERLAP] = 0
    best = max(sum(overlaps[track, index] for track, index in enumerate(order)) for order in permutations(range(4)))
    tracks = track_faces([before, after])
    linked = [(number, track[1]) for number, track in enumerate(tracks) if len(track) == 2]
    assert sum(overlaps[number, index] for number, index in linked) == pytest.approx(best)
    assert sorted(track[1] for track in tracks if 1 in track) == [0, 1, 2, 3]


def test_two_people_keep_their_tracks_whatever_the_order_of_detection() -> None:
    frames = [[box(10 + step, 10), box(60 - step, 12)][:: 1 if step % 2 else -1] for step in range(8)]
    tracks = track_faces(frames)
    assert len(tracks) == 2
    for track in tracks:
        xs = [frames[place][index][0] for place, index in sorted(track.items())]
        assert (np.diff(xs) > 0).all() or (np.diff(xs) < 0).all()
        assert len(xs) == 8


def test_a_track_waits_for_its_face() -> None:
    tracks = track_faces([[box(10, 10)], [], [box(90, 10)], [box(13, 10)]])
    assert tracks == [{0: 0, 3: 0}, {2: 0}]


def test_nobody() -> None:
    assert track_faces([]) == track_faces([[], []]) == []


FRAMES = [[box(0, 0, 100, 100), box(200, 0)], [box(200, 0), box(0, 0, 100, 100)], [box(201, 0)]]
NO_MASK = [[0.0, 0.0], [0.0, 0.0], [0.0]]


class TestChoice:
    def test_the_longest_not_the_largest(self) -> None:
        """Defect 9 of the reference benchmark."""
        tracks = track_faces(FRAMES)
        assert choose_track(tracks, FRAMES, NO_MASK) == 1

    def test_of_equals_the_larger(self) -> None:
        frames = FRAMES[:2]
        assert choose_track(track_faces(frames), frames, NO_MASK[:2]) == 0

    def test_the_one_under_the_mask_though_it_is_shorter(self) -> None:
        overlaps = [[0.3, 0.0], [0.0, 0.2], [0.1]]
        assert choose_track(track_faces(FRAMES), FRAMES, overlaps) == 0
