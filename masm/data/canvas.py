"""Painting for the drawn faces: antialiased soft shapes on a linear-light canvas, and random texture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]

EXTENT = 1.7  # the canvas spans [-EXTENT, EXTENT] head units in u and v
EVERYWHERE = slice(None), slice(None)  # the window that is the whole canvas
_SUBPIXEL = 4  # fractional bits of cv2's polygon coordinates


class Canvas:
    """A square picture in head coordinates: `colour` (N, N, 3) linear light and `cover` (N, N) in [0, 1]."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.unit = size / (2 * EXTENT)  # pixels per head unit
        self.axis: Array = (((np.arange(size) + 0.5) / self.unit) - EXTENT).astype(np.float32)
        self.colour: Array = np.zeros((size, size, 3), np.float32)
        self.cover: Array = np.zeros((size, size), np.float32)

    def pixels(self, points: ArrayLike) -> Array:
        """Canvas pixels (x, y) of head coordinates (n, 2)."""
        return (np.asarray(points, np.float32) + EXTENT) * np.float32(self.unit) - np.float32(0.5)

    def mask(self, points: ArrayLike, softness: float = 0.0) -> Array:
        """Coverage (N, N) of a polygon; its edge is blurred by `softness` head units."""
        window, alpha = self._shape(self.pixels(points), softness)
        full = np.zeros((self.size, self.size), np.float32)
        full[window] = alpha
        return full

    def fill(self, points: ArrayLike, colour: ArrayLike, softness: float = 0.0, opacity: float = 1.0) -> None:
        """Paint a polygon of head coordinates (n, 2) in a linear-light colour (3,)."""
        window, alpha = self._shape(self.pixels(points), softness)
        self.blend(window, opacity * alpha, np.asarray(colour, np.float32))

    def tint(self, points: ArrayLike, factor: ArrayLike, softness: float = 0.0) -> None:
        """Multiply what lies under a polygon by a factor (3,), which keeps its texture."""
        window, alpha = self._shape(self.pixels(points), softness)
        self.colour[window] *= 1 + alpha[..., None] * (np.asarray(factor, np.float32) - 1)

    def patch(self, points: ArrayLike) -> tuple[tuple[slice, slice], Array]:
        """The window around a polygon and the polygon's coverage (h, w) of it."""
        return self._shape(self.pixels(points), 0.0)

    def strokes(self, lines: Sequence[NDArray], colour: ArrayLike, opacity: float, width: float = 0.0) -> None:
        """Draw thin lines, each (n, 2), of `width` head units, at least one pixel wide."""
        pixels = [self.pixels(line) for line in lines]
        window, origin, mask = self._window(np.concatenate(pixels), 3)
        shifted = [_fixed(line - origin) for line in pixels]
        thickness = max(round(width * self.unit), 1)
        cv2.polylines(mask, shifted, False, 255, thickness, cv2.LINE_AA, _SUBPIXEL)
        self.blend(window, mask * np.float32(opacity / 255), np.asarray(colour, np.float32))

    def blend(self, window: tuple[slice, slice], alpha: Array, colour: Array) -> None:
        """Lay a colour (3,) or patch (h, w, 3) over a window by `alpha` (h, w)."""
        patch = self.colour[window]
        patch += alpha[..., None] * (colour - patch)

    def _shape(self, pixels: Array, softness: float) -> tuple[tuple[slice, slice], Array]:
        sigma = softness * self.unit
        window, origin, mask = self._window(pixels, int(2.5 * sigma) + 2)
        cv2.fillPoly(mask, [_fixed(pixels - origin)], 255, cv2.LINE_AA, _SUBPIXEL)
        alpha: Array = mask.astype(np.float32) / np.float32(255)
        if sigma > 0.3:  # pixels; less does not show
            cv2.GaussianBlur(alpha, (0, 0), sigma, dst=alpha)
        return window, alpha

    def _window(self, pixels: Array, margin: int) -> tuple[tuple[slice, slice], Array, NDArray[np.uint8]]:
        low = np.clip(np.floor(pixels.min(0)).astype(int) - margin, 0, self.size - 1)
        high = np.clip(np.ceil(pixels.max(0)).astype(int) + margin + 1, low + 1, self.size)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        return window, low.astype(np.float32), np.zeros(high[::-1] - low[::-1], np.uint8)


def fractal(rng: np.random.Generator, size: int, grids: Sequence[int], decay: float = 0.7) -> Array:
    """Smooth random texture (size, size): noise on coarse to fine grids, each `decay` times the one before."""
    total = np.zeros((size, size), np.float32)
    for octave, grid in enumerate(grids):
        noise = rng.standard_normal((grid, grid), np.float32)
        total += np.float32(decay**octave) * cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return total


def gaussians(bumps: ArrayLike, u: Array, v: Array) -> Array:
    """Sum of axis-aligned Gaussians (len(v), len(u)); `bumps` (n, 5) as `anatomy.relief` describes them."""
    height, at_u, at_v, width_u, width_v = np.asarray(bumps, np.float32).T
    along_u = np.exp(-0.5 * ((u - at_u[:, None]) / width_u[:, None]) ** 2)
    along_v = np.exp(-0.5 * ((v - at_v[:, None]) / width_v[:, None]) ** 2)
    return (height[:, None] * along_v).T @ along_u


def ellipse(u: float, v: float, radius_u: float, radius_v: float, count: int = 20) -> Array:
    """An ellipse's contour (count, 2)."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([u + radius_u * np.cos(angle), v + radius_v * np.sin(angle)], 1).astype(np.float32)


def _fixed(pixels: Array) -> NDArray[np.int32]:
    return np.round(pixels * 2**_SUBPIXEL).astype(np.int32)
