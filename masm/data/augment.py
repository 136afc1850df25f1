"""Augmentation of whole batches on the device, each sample by a generator of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from kornia.enhance import adjust_brightness, adjust_contrast, jpeg_codec_differentiable
from kornia.filters import gaussian_blur2d

BRIGHTNESS = 0.1
CONTRAST = 0.1
BLUR_SIGMA = (0.3, 1.5)
"""Of the Gaussian, in pixels."""
NOISE_DEVIATION = (0.005, 0.04)
"""Of the Gaussian noise, where white is 1."""
JPEG_QUALITY = (40.0, 95.0)


@dataclass(frozen=True)
class Augmentation:
    """Shares of the images, 0 to 1, that are blurred, get noise, and are compressed as JPEG, in this order.

    They resample or filter, and so add or hide the very traces that are to be learnt: what a detector gains in
    robustness it may lose in sharpness. None of them by default. Before them comes `self_blends`, the share of the
    fakes that are replaced by self-blends (`masm.data.selfblend`).
    """

    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    self_blends: float = 0.0


MILD = Augmentation()


def augment(
    images: torch.Tensor, samples: np.ndarray, seed: int, epoch: int, augmentation: Augmentation = MILD
) -> torch.Tensor:
    """Mirror images, change their brightness and contrast a little, and degrade the shares that are asked for.

    Args:
        images: (b, 3, S, S) uint8, or float in 0..1.
        samples: (b,) numbers of the samples; sample i of an epoch always gets the same change (but noise, which is
            drawn on the device, differs from one kind of device to another).
        seed, epoch: the rest of what the change depends on.
        augmentation: how many are degraded.

    Returns:
        (b, 3, S, S) float32 in 0..1.
    """
    generators = [np.random.default_rng((seed, epoch, int(i))) for i in samples]
    chance = torch.from_numpy(np.stack([generator.random(9) for generator in generators])).float().to(images.device)
    pixels = to_float(images)
    mirrored = torch.where(chance[:, 0, None, None, None] < 0.5, pixels.flip(-1), pixels)
    brighter = adjust_brightness(mirrored, BRIGHTNESS * (2 * chance[:, 1] - 1))
    pixels = adjust_contrast(brighter, 1 + CONTRAST * (2 * chance[:, 2] - 1))
    if len(blurred := torch.nonzero(chance[:, 3] < augmentation.blur)[:, 0]):
        pixels[blurred] = _blur(pixels[blurred], _between(BLUR_SIGMA, chance[blurred, 4]))
    if len(noisy := torch.nonzero(chance[:, 5] < augmentation.noise)[:, 0]):
        seeds = [int(generators[i].integers(2**62)) for i in noisy.tolist()]
        pixels[noisy] = _add_noise(pixels[noisy], _between(NOISE_DEVIATION, chance[noisy, 6]), seeds)
    if len(compressed := torch.nonzero(chance[:, 7] < augmentation.jpeg)[:, 0]):
        pixels[compressed] = jpeg_codec_differentiable(
            pixels[compressed], _between(JPEG_QUALITY, chance[compressed, 8])
        ).clamp(0, 1)
    return pixels


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in 0..1, in memory plane by plane; floats pass."""
    if images.dtype != torch.uint8:
        return images
    return images.to(torch.float32, memory_format=torch.contiguous_format) / 255


def _between(bounds: tuple[float, float], chance: torch.Tensor) -> torch.Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * chance


def _blur(pixels: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Each image by its own Gaussian, cut off at four of the widest's sigmas."""
    side = 2 * round(4 * BLUR_SIGMA[1]) + 1
    return gaussian_blur2d(pixels, (side, side), sigmas[:, None].expand(-1, 2))


def _add_noise(pixels: torch.Tensor, deviations: torch.Tensor, seeds: list[int]) -> torch.Tensor:
    """Each image's noise from a generator of its own on the device."""
    noise = torch.stack([_normal(image, seed) for image, seed in zip(pixels, seeds, strict=True)])
    return (pixels + deviations[:, None, None, None] * noise).clamp(0, 1)


def _normal(image: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator(image.device).manual_seed(seed)
    return torch.randn(image.shape, generator=generator, device=image.device)
