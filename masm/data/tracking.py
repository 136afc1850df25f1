"""Following faces through the sampled frames of a video, and choosing the one that the label speaks of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

LEAST_OVERLAP = 0.2
"""Of the boxes of one face in two sampled frames, as intersection over union. Frames lie up to a second apart, so
a face may have moved by half its width."""

Track = dict[int, int]
"""One face through the frames: from the place of a frame among the sampled ones to that of its box in the frame."""


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n, m) shares of boxes (n, 4) and (m, 4), each x, y, width, height."""
    near = np.maximum(first[:, None, :2], second[None, :, :2])
    far = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    shared = np.prod(np.maximum(far - near, 0), axis=2)
    return shared / (np.prod(first[:, 2:], axis=1)[:, None] + np.prod(second[:, 2:], axis=1)[None] - shared)


def track_faces(frames: Sequence[Sequence[np.ndarray]]) -> list[Track]:
    """Link the boxes of each frame to the tracks so far, so that the sum of overlaps is the greatest.

    A track waits where its face is not found, at its last box.

    Args:
        frames: the boxes (4,) of each frame.

    Returns:
        The tracks, in the order in which they begin; every box is in one of them.
    """
    tracks: list[Track] = []
    latest: list[np.ndarray] = []
    for place, boxes in enumerate(frames):
        linked = _link(latest, boxes)
        for index, box in enumerate(boxes):
            number = linked.get(index, len(tracks))
            if number == len(tracks):
                tracks.append({})
                latest.append(box)
            tracks[number][place] = index
            latest[number] = box
    return tracks


def _link(tracks: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> dict[int, int]:
    """From a box's place to its track's; boxes that overlap too little with any track are left out."""
    if not tracks or not boxes:
        return {}
    overlaps = intersection_over_union(np.stack(tracks).astype(float), np.stack(boxes).astype(float))
    overlaps[overlaps < LEAST_OVERLAP] = 0  # or a pair too far apart could part two that belong together
    pairs = zip(*linear_sum_assignment(overlaps, maximize=True), strict=True)
    return {int(box): int(track) for track, box in pairs if overlaps[track, box] > 0}


def choose_track(
    tracks: Sequence[Track], frames: Sequence[Sequence[np.ndarray]], overlaps: Sequence[Sequence[float]]
) -> int:
    """The track that lies most under the forgery mask; without a mask the longest, of equals that of larger boxes.

    Args:
        tracks: one or more, of `track_faces`.
        frames: the boxes (4,) of each frame.
        overlaps: of each of these boxes with its frame's mask; 0 without a mask.
    """

    def rank(number: int) -> tuple[float, int, float]:
        boxes = tracks[number].items()
        under = sum(overlaps[place][index] for place, index in boxes)
        return under, len(boxes), sum(float(np.prod(frames[place][index][2:])) for place, index in boxes)

    return max(range(len(tracks)), key=rank)
