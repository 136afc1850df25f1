"""Self-blended images on the device: a real face under a copy of itself that was changed a little.

The idea is that of Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022: what all face
swaps share is the blending, so that a detector which learns it alone is tied to no forger. The steps and ranges here
are ours. The mask needs no face parser: an ellipse from brows to chin, placed by eyes and mouth where the face table
has landmarks and in the middle of the crop where it has none, whose outline waves in and out.

Both images of a pair are afterwards compressed alike: a detector that saw only fakes compressed anew would learn that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from masm.data.augment import to_float

RANGES = {
    "brightness": (-0.06, 0.06),  # added, where white is 1
    "contrast": (0.9, 1.1),  # factor about the middle grey
    "warmth": (-0.04, 0.04),  # red grows by it and blue shrinks
    "sharpening": (-1.0, 0.8),  # of unsharp masking; below 0 it softens
    "across": (-0.02, 0.02),  # shift, over the side of the crop
    "down": (-0.02, 0.02),
    "zoom": (0.97, 1.03),
    "bend": (0.0, 0.008),  # standard deviation of the elastic shifts, over the side of the crop
    "size": (0.8, 1.1),  # of the mask, over the face's
    "feather": (0.1, 0.6),  # width of the mask's soft border, over its radius
    "opacity": (0.5, 1.0),
    "quality": (60.0, 95.0),  # of the JPEG compression of both
}
"""What is drawn for each pair, evenly between two bounds."""
BLUR_SIGMA = 1.0
"""Of the unsharp masking, in pixels."""
BENDS = 4
"""Elastic shifts are drawn on a grid of so many points a side, and smooth between them."""
WAVES, WAVE_HEIGHT = 4, 0.12
"""Of the mask's outline: how many, and the most of the first over the radius."""
ELLIPSE = (0.25, 0.32)
"""Half axes, over the side of the crop, of the face where no landmarks say more."""
LEAST_HEIGHT = 0.05
"""Of a face: from its eyes to its mouth, over the side of the crop. Less are no landmarks."""


def blend_pairs(
    images: Tensor, samples: np.ndarray, blended: np.ndarray, landmarks: np.ndarray, seed: int, epoch: int
) -> Tensor:
    """Replace the fakes of some pairs by self-blends of their reals, and compress both of such a pair alike.

    Args:
        images: (2 n, 3, S, S) uint8, or float in 0..1; a real and a fake by turns.
        samples: (2 n,) numbers of the samples; a pair of an epoch always gets the same change.
        blended: (n,) bool, the pairs.
        landmarks: (2 n, 5, 2) pixels of the images; NaN where there are none.
        seed, epoch: the rest of what the change depends on.

    Returns:
        (2 n, 3, S, S) float32 in 0..1; the other pairs as they were.
    """
    pixels = to_float(images).clone()
    pairs = np.flatnonzero(blended)
    if len(pairs) == 0:
        return pixels
    generators = [np.random.default_rng((seed, epoch, *pair)) for pair in samples.reshape(-1, 2)[pairs].tolist()]
    drawn = draw(generators, pixels.device)
    reals = pixels[2 * pairs]
    masks = face_masks(landmarks[2 * pairs], pixels.shape[-1], drawn)
    both = torch.stack([reals, self_blend(reals, masks, drawn)], dim=1).flatten(0, 1)
    compressed = jpeg_codec_differentiable(both, drawn["quality"].repeat_interleave(2)).clamp(0, 1)
    pixels[np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()] = compressed
    return pixels


def draw(generators: list[np.random.Generator], device: torch.device) -> dict[str, Tensor]:
    """What `RANGES` names, (n,) each; "shifts" (n, 2, BENDS, BENDS) normal; "heights" and "phases" (n, WAVES)."""
    low, high = np.array(list(RANGES.values())).T
    drawn = {
        "ranges": [generator.uniform(low, high) for generator in generators],
        "shifts": [generator.standard_normal((2, BENDS, BENDS)) for generator in generators],
        "heights": [generator.uniform(0, WAVE_HEIGHT, WAVES) for generator in generators],
        "phases": [generator.uniform(0, 2 * np.pi, WAVES) for generator in generators],
    }
    tensors = {name: torch.from_numpy(np.stack(values)).float().to(device) for name, values in drawn.items()}
    return tensors | dict(zip(RANGES, tensors.pop("ranges").unbind(1), strict=True))


def face_masks(landmarks: np.ndarray, side: int, drawn: Mapping[str, Tensor]) -> Tensor:
    """Weights in 0..1, (n, 1, side, side): the opacity inside, 0 outside, smooth between.

    Args:
        landmarks: (n, 5, 2) pixels of the crops; NaN where there are none.
        side: of the crops in pixels.
        drawn: "size", "feather", "opacity", "heights" and "phases", as from `draw`.
    """
    device = drawn["size"].device
    centres, axes = face_ellipses(landmarks.astype(np.float64), side)
    places = torch.stack(torch.meshgrid(*[torch.arange(side, device=device) + 0.5] * 2, indexing="xy"), dim=-1)
    offsets = places - torch.from_numpy(centres).float().to(device)[:, None, None]
    inside = offsets @ torch.from_numpy(np.linalg.inv(axes)).float().to(device).mT[:, None]  # the unit circle
    angles = torch.atan2(inside[..., 1], inside[..., 0])[..., None]
    orders = torch.arange(1, WAVES + 1, device=device)
    waves = torch.cos(angles * orders + drawn["phases"][:, None, None]) * orders.rsqrt()
    outline = _wide(drawn["size"])[:, 0] * (1 + (waves * drawn["heights"][:, None, None]).sum(-1))
    feather = _wide(drawn["feather"])[:, 0]
    depth = ((1 - inside.norm(dim=-1) / outline) / feather + 0.5).clamp(0, 1)
    return (_wide(drawn["opacity"])[:, 0] * depth.square() * (3 - 2 * depth))[:, None]


def face_ellipses(landmarks: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (n, 2) and half axes (n, 2, 2), in columns, of ellipses from brows to chin, in pixels.

    Args:
        landmarks: (n, 5, 2), as for `face_masks`.
        side: of the crops.
    """
    eyes, lips = landmarks[:, :2].mean(axis=1), landmarks[:, 3:].mean(axis=1)
    known = np.linalg.norm(lips - eyes, axis=1) > LEAST_HEIGHT * side  # no number is greater than NaN, nor less
    centres = np.full((len(landmarks), 2), side / 2)
    axes = np.broadcast_to(side * np.diag(ELLIPSE), (len(landmarks), 2, 2)).copy()
    down, between = (lips - eyes)[known], (landmarks[:, 1] - landmarks[:, 0])[known]
    # The eyes come closer when the head turns, so the height bounds the width from below.
    wide = np.maximum(np.linalg.norm(between, axis=1) / np.linalg.norm(down, axis=1), 0.85)
    across = wide[:, None] * np.stack([down[:, 1], -down[:, 0]], axis=1)
    centres[known], axes[known] = eyes[known] + 0.5 * down, np.stack([0.95 * across, 1.15 * down], axis=2)
    return centres, axes


def self_blend(reals: Tensor, masks: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Each image under a changed copy of itself; where the mask is 0 it stays as it is, bit for bit.

    Args:
        reals: (n, 3, S, S) in 0..1.
        masks: (n, 1, S, S) weights of the copies.
        drawn: how they are changed, as from `draw`.
    """
    warmth = drawn["warmth"]
    tint = torch.stack([1 + warmth, torch.ones_like(warmth), 1 - warmth], dim=1)[..., None, None]
    copies = tint * ((reals - 0.5) * _wide(drawn["contrast"]) + 0.5 + _wide(drawn["brightness"]))
    blurred = gaussian_blur2d(copies, (7, 7), (BLUR_SIGMA, BLUR_SIGMA))
    copies = copies + _wide(drawn["sharpening"]) * (copies - blurred)
    moved = grid_sample(copies, _places(reals, drawn), padding_mode="border", align_corners=False)
    return reals + masks * (moved.clamp(0, 1) - reals)


def _places(reals: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
    """Where each pixel of the copies is read, (n, S, S, 2) in -1..1: shifted, zoomed and bent."""
    zoom, zero = 1 / drawn["zoom"], torch.zeros_like(drawn["zoom"])
    rows = [torch.stack([zoom, zero, 2 * drawn["across"]], 1), torch.stack([zero, zoom, 2 * drawn["down"]], 1)]
    straight = affine_grid(torch.stack(rows, dim=1), list(reals.shape), align_corners=False)
    bends = interpolate(drawn["shifts"], reals.shape[-2:], mode="bicubic", align_corners=True)
    return straight + 2 * (_wide(drawn["bend"]) * bends).permute(0, 2, 3, 1)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
