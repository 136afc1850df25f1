"""What pixels become: masks, colour matching, and the filters that re-synthesis leaves its trace with."""

from __future__ import annotations

import cv2
import numpy as np

INTERPOLATIONS = {"cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
CONTRAST_LIMITS = (0.75, 1.33)
"""Bounds of the factor that `match_colour` puts on a channel's spread: more would amplify the noise."""


def feathered(polygon: np.ndarray, feather: float, shape: tuple[int, int]) -> np.ndarray:
    """Blending weights 0..255, (H, W) uint8: a filled polygon blurred by `feather` pixels (sigma)."""
    mask = np.zeros(shape, np.uint8)
    fixed_point = np.rint(polygon * 16).astype(np.int32)
    cv2.fillPoly(mask, [fixed_point], 255, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(mask, (0, 0), feather)


def blend(image: np.ndarray, changed: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mix by weight mask / 255; where the mask is 0 the image stays as it is, bit for bit.

    Args:
        image: (H, W, 3) uint8.
        changed: (H, W, 3), levels 0..255 of any real type.
        mask: (H, W) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    weight = mask[..., None].astype(np.float32) / 255
    mixed = image + weight * (np.clip(changed, 0, 255).astype(np.float32) - image)
    return np.rint(mixed).astype(np.uint8)


def match_colour(image: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give `image` the mean and spread that `reference` has inside the mask, in CIE L*a*b*.

    After Reinhard et al., "Color transfer between images", 2001, who do it in l-alpha-beta.

    Args:
        image: (H, W, 3) uint8 RGB.
        reference: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 weights of the pixels in both statistics.

    Returns:
        (H, W, 3) float32 RGB, 0..255.
    """
    ours, theirs = (cv2.cvtColor(np.float32(rgb) / 255, cv2.COLOR_RGB2LAB) for rgb in (image, reference))
    (mean, spread), (wanted_mean, wanted_spread) = _statistics(ours, mask), _statistics(theirs, mask)
    factor = np.clip(wanted_spread / np.maximum(spread, 1e-3), *CONTRAST_LIMITS)
    matched = (ours - mean) * factor.astype(np.float32) + wanted_mean
    return 255 * np.clip(cv2.cvtColor(matched.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1)


def match_border(image: np.ndarray, reference: np.ndarray, mask: np.ndarray, reach: float) -> np.ndarray:
    """Carry the difference of colour along the mask's border smoothly into the mask, so that light agrees.

    A cheap stand-in for Poisson blending (Perez et al., "Poisson image editing", 2003): the differences on
    the feathered border are averaged with Gaussian weights instead of solving Laplace's equation.

    Args:
        image: (H, W, 3) float32, to be corrected.
        reference: (H, W, 3) uint8, to agree with on the border.
        mask: (H, W) uint8; its border is where it is neither 0 nor 255.
        reach: standard deviation of the weights in pixels.

    Returns:
        (H, W, 3) float32.
    """
    inside = mask[..., None].astype(np.float32) / 255
    border = inside * (1 - inside)
    carried = np.concatenate([border * (reference - image), border], axis=2)
    height, width = mask.shape
    # The result is smooth, so a quarter of the resolution is enough.
    small = cv2.resize(carried, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
    spread = cv2.resize(cv2.GaussianBlur(small, (0, 0), reach / 4), (width, height))
    return image + spread[..., :3] / np.maximum(spread[..., 3:], 1e-6)


def sharpen(image: np.ndarray, amount: float, radius: float = 1.0) -> np.ndarray:
    """Unsharp masking of a float32 image; a negative amount softens."""
    return image + np.float32(amount) * (image - cv2.GaussianBlur(image, (0, 0), radius))


def drop_grain(image: np.ndarray, level: float) -> np.ndarray:
    """Drop the fine detail of a float32 image that is fainter than `level`, and keep what is stronger.

    Detail d is what a small blur takes away; it is multiplied by d^2 / (d^2 + level^2), the empirical
    Wiener gain of an isolated coefficient.
    """
    coarse = cv2.GaussianBlur(image, (0, 0), 1.5)
    detail = image - coarse
    energy = detail * detail + np.float32(1e-6)  # no 0 / 0 where level is 0
    return coarse + detail * energy / (energy + np.float32(level**2))


def rerender(image: np.ndarray, grain: float, resolution: float, interpolation: str, sharpening: float) -> np.ndarray:
    """Pass an image through a generator: what it paints has no grain, and a resolution of its own.

    Face swaps and reenactments are painted by a decoder at a fixed size and scaled into the picture, then
    sharpened; the camera's noise does not come through.

    Args:
        image: (H, W, 3), levels 0..255.
        grain: detail fainter than this many levels is lost.
        resolution: the generator's size over the picture's, at most 1.
        interpolation: a key of `INTERPOLATIONS`.
        sharpening: amount of unsharp masking afterwards.

    Returns:
        (H, W, 3) float32.
    """
    height, width = image.shape[:2]
    size = (max(round(width * resolution), 1), max(round(height * resolution), 1))
    painted = drop_grain(image.astype(np.float32), grain)
    small = cv2.resize(painted, size, interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (width, height), interpolation=INTERPOLATIONS[interpolation])
    return sharpen(large, sharpening)


def zero_insertion(image: np.ndarray, imbalance: float) -> np.ndarray:
    """Enlarge twice as a transposed convolution with stride 2 does, whose kernel is not quite balanced.

    With `imbalance` 0 this is bilinear enlargement; otherwise odd and even pixels get unequal gains, the
    checkerboard of Odena et al., "Deconvolution and checkerboard artifacts", 2016.
    """
    height, width = image.shape[:2]
    spread = np.zeros((2 * height, 2 * width, 3), np.float32)
    spread[::2, ::2] = image
    kernel = np.array([0.5 + imbalance, 1.0, 0.5 + imbalance], np.float32)
    return cv2.sepFilter2D(spread, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def guided_filter(image: np.ndarray, radius: int, strength: float) -> np.ndarray:
    """Edge-preserving smoothing of each channel by itself (He et al., "Guided image filtering", 2013).

    Args:
        image: (H, W, 3) float32.
        radius: of the window in pixels.
        strength: detail whose standard deviation is below it, in the image's levels, is smoothed away.
    """
    window = (2 * radius + 1, 2 * radius + 1)
    mean = cv2.blur(image, window)
    variance = cv2.blur(image * image, window) - mean * mean
    kept = variance / (variance + np.float32(strength**2))
    return cv2.blur(kept, window) * image + cv2.blur((1 - kept) * mean, window)


def _statistics(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each channel, (3,) float64 each."""
    inside = mask > 0
    weights = mask[inside] / max(float(mask.sum()), 1.0)
    values = image[inside].astype(float)
    mean = weights @ values
    return mean, np.sqrt(weights @ np.square(values - mean))
