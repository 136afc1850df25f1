"""What surrounds a drawn head: a background of varied texture, and clothes. Colours are linear light."""

from __future__ import annotations

import cv2
import numpy as np

from masm.data.anatomy import Array
from masm.data.canvas import fractal


def background(rng: np.random.Generator, size: int) -> Array:
    """A background (size, size, 3): a gradient with objects, out of focus by chance, and texture."""
    top, bottom = rng.uniform(0.01, 0.6) * rng.uniform(0.75, 1.25, (2, 3))
    slope = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    image = np.repeat(top + slope * (bottom - top), size, axis=1).astype(np.float32)
    for _ in range(int(rng.integers(0, 9))):
        _paint_object(image, rng)
    image = cv2.GaussianBlur(image, (0, 0), size * rng.uniform(0.002, 0.04))
    grain = fractal(rng, size, (4, 9, 21, size // 4, size // 2), decay=rng.uniform(0.5, 0.9))
    return image * np.exp(np.float32(rng.uniform(0.01, 0.12)) * grain)[..., None]


def clothe(image: Array, rng: np.random.Generator, neck: tuple[float, float], shoulder: float) -> None:
    """Paint a garment in place; `neck` is the throat's point and `shoulder` half its width, in pixels."""
    size = len(image)
    (x, y), drop = neck, rng.uniform(0.05, 0.4) * shoulder
    low, seam = size + 9, y + 0.32 * shoulder
    right = [[0.42 * shoulder, y], [1.15 * shoulder, seam], [1.5 * shoulder, low]]
    left = [[-u, v] for u, v in reversed(right)]
    outline = np.array([[0, y + drop], *right, *left]) + np.array([x, 0])
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    folds = fractal(rng, size, (6, 14, 40, size), decay=0.6)
    colour = rng.uniform(0.01, 0.5) * rng.uniform(0.5, 1.3, 3)
    cloth = colour.astype(np.float32) * np.exp(0.14 * folds)[..., None]
    image += (mask.astype(np.float32) / 255)[..., None] * (cloth - image)


def _paint_object(image: Array, rng: np.random.Generator) -> None:
    size = len(image)
    colour = tuple(float(c) for c in rng.uniform(0.01, 0.8) * rng.uniform(0.6, 1.2, 3))
    x, y = (int(c) for c in rng.uniform(0, size, 2))
    width, height = (int(c) + 1 for c in size * rng.uniform(0.03, 0.5, 2))
    if rng.uniform() < 0.6:
        cv2.rectangle(image, (x - width // 2, y - height // 2), (x + width // 2, y + height // 2), colour, -1)
    else:
        cv2.ellipse(image, (x, y), (width // 2, height // 2), rng.uniform(0, 180), 0, 360, colour, -1)
