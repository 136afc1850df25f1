"""Regions of a face, and patches hidden by them: FSFM's masking for masked autoencoding.

Wang et al., "FSFM: A Generalizable Face Security Foundation Model via Self-Supervised Facial Representation
Learning" (CVPR 2025), section 3.1: one whole facial region is covered, and of every other region as great a share
as the ratio of hidden patches leaves. FSFM's regions come from a face parser; ours are simple shapes about the five
landmarks that every face here has.
"""

from __future__ import annotations

import numpy as np

from masm.data.images import ImageError

FACIAL = ("brows", "eyes", "nose", "mouth", "boundary", "hair")
"""The regions that are covered whole."""
REGIONS = (*FACIAL, "skin", "background")


def facial_regions(landmarks: np.ndarray, size: int, patch: int) -> np.ndarray:
    """The region that the centre of each patch lies in.

    The shapes are drawn in the face's own coordinates: the eyes lie at (-1/2, 0) and (1/2, 0), the middle of the
    mouth at (0, 1). So they turn, and narrow, with the head. Proportions are ours.

    Args:
        landmarks: (n >= 5, 2) pixels of the crop, as in `masm.data.faces.Face`.
        size: side of the crop in pixels.
        patch: side of a patch in pixels.

    Returns:
        (tokens,) uint8 numbers of `REGIONS`, row by row.

    Raises:
        ImageError: eyes and mouth lie on one line.
    """
    left, right, nose = landmarks[:3].astype(np.float64)
    eyes, mouth = (left + right) / 2, landmarks[3:5].astype(np.float64).mean(0)
    axes = np.column_stack([right - left, mouth - eyes])
    if abs(np.linalg.det(axes)) < 1:  # square pixels
        raise ImageError("the landmarks of eyes and mouth lie on one line")
    centres = (np.arange(size // patch) + 0.5) * patch
    points = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    u, v = np.linalg.solve(axes, (points - eyes).T)
    tip_u, tip_v = np.linalg.solve(axes, nose - eyes)
    along = v / max(tip_v, 0.3)  # 0 between the eyes, 1 at the tip of the nose
    radius = np.hypot(u / 1.2, (v - 0.38) / 1.25)  # 1 on the face's outline
    shapes = {
        "eyes": (abs(abs(u) - 0.5) < 0.38) & (abs(v) < 0.2),
        "brows": (abs(u) > 0.1) & (abs(u) < 1.0) & (v > -0.62) & (v < -0.2),
        "nose": (abs(u - tip_u * along) < 0.12 + 0.25 * along) & (v > 0.2) & (along < 1.3),
        "mouth": (abs(u) < 0.62) & (abs(v - 1) < 0.26),
        "boundary": (radius > 0.85) & (radius < 1.2) & (v > -0.3),
        "hair": (radius > 0.85) & (radius < 1.7) & (v < 0.6),
        "skin": radius <= 0.85,
    }
    numbers = [REGIONS.index(name) for name in shapes]
    return np.select(list(shapes.values()), numbers, REGIONS.index("background")).astype(np.uint8)


def hide_patches(regions: np.ndarray, hidden: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cover one facial region of each image, drawn by chance, and hide a like share of each other region.

    The share of a region is rounded up or down by chance, so that every patch outside the covered region is hidden
    with the same probability (systematic sampling). Where no facial region shows, or all are larger than `hidden`,
    none is covered.

    Args:
        regions: (B, tokens) numbers of `REGIONS`.
        hidden: patches to hide in each image, fewer than there are.
        rng: source of the choices.

    Returns:
        order: (B, tokens) a permutation of the patches of each image, the visible ones first.
        covered: (B, tokens) bool, the patches of the covered region.
    """
    count, tokens = regions.shape
    rows = np.arange(count)
    sizes = (regions[..., None] == np.arange(len(REGIONS))).sum(1)
    fitting = np.where((sizes > 0) & (sizes <= hidden), rng.random(sizes.shape), -1)[:, : len(FACIAL)]
    chosen = np.where(fitting.max(1) < 0, len(REGIONS), fitting.argmax(1))
    covered = regions == chosen[:, None]
    others = np.where(np.arange(len(REGIONS)) == chosen[:, None], 0, sizes)
    rest, remaining = hidden - covered.sum(1), tokens - covered.sum(1)
    shares = np.cumsum(others, 1) * rest[:, None] / remaining[:, None]
    quotas = np.diff(np.floor(shares + rng.random((count, 1))), axis=1, prepend=0)
    by_region = np.argsort(regions + rng.random(regions.shape), axis=1)
    sorted_regions = np.take_along_axis(regions, by_region, 1)
    rank = np.arange(tokens) - (np.cumsum(sizes, 1) - sizes)[rows[:, None], sorted_regions]
    masked = np.empty_like(covered)
    np.put_along_axis(masked, by_region, rank < quotas[rows[:, None], sorted_regions], 1)
    return np.argsort(masked | covered, axis=1, kind="stable"), covered
