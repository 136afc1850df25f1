"""Augmentation of whole batches on the device, each sample by a generator of its own."""

from __future__ import annotations

import numpy as np
import torch
from kornia.enhance import adjust_brightness, adjust_contrast

BRIGHTNESS = 0.1
CONTRAST = 0.1


def augment(images: torch.Tensor, samples: np.ndarray, seed: int, epoch: int) -> torch.Tensor:
    """Mirror images and change their brightness and contrast a little.

    Nothing here resamples or filters: that would add or hide the very traces that are to be learnt.

    Args:
        images: (b, 3, S, S) uint8, or float in 0..1.
        samples: (b,) numbers of the samples; sample i of an epoch always gets the same change.
        seed, epoch: the rest of what the change depends on.

    Returns:
        (b, 3, S, S) float32 in 0..1.
    """
    draws = np.stack([np.random.default_rng((seed, epoch, int(i))).random(3) for i in samples])
    chance = torch.from_numpy(draws).float().to(images.device)
    pixels = to_float(images)
    mirrored = torch.where(chance[:, 0, None, None, None] < 0.5, pixels.flip(-1), pixels)
    brighter = adjust_brightness(mirrored, BRIGHTNESS * (2 * chance[:, 1] - 1))
    return adjust_contrast(brighter, 1 + CONTRAST * (2 * chance[:, 2] - 1))


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in 0..1, in memory plane by plane; floats pass."""
    if images.dtype != torch.uint8:
        return images
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255
