"""Hair of the drawn heads: its colour and strands, and the shapes behind and in front of the face."""

from __future__ import annotations

import cv2
import numpy as np

from masm.data import anatomy
from masm.data.anatomy import Array, Person
from masm.data.canvas import EVERYWHERE, Canvas

CURLY = "curly"
LENGTHS = {"short": 0.0, "side": 0.05, "fringe": 0.35, "medium": 0.85, "long": 1.6, CURLY: 0.3}  # down to v


def hair_shades(canvas: Canvas, person: Person, rng: np.random.Generator) -> Array:
    """Hair colour (N, N, 3): streaks that run from the parting outwards, or curls."""
    size = canvas.size
    if person.hair_style == CURLY:
        noise = rng.standard_normal((size, size), np.float32)
        curls = cv2.GaussianBlur(noise, (0, 0), 0.02 * canvas.unit + 0.5)
        streaks = curls / curls.std()
    else:
        streaks = _strands(canvas, person.parting, rng)
    return person.hair * (np.exp(0.38 * streaks) + 0.12 * np.clip(streaks, 0, 2))[..., None] + 0.002


def paint_hair(canvas: Canvas, shape: Array | None, colour: Array) -> Array:
    """Paint hair (N, N, 3) inside a contour, if there is any; returns its coverage (N, N)."""
    if shape is None:
        return np.zeros_like(canvas.cover)
    alpha = canvas.mask(shape, 0.012)
    canvas.blend(EVERYWHERE, alpha, colour)
    np.maximum(canvas.cover, alpha, out=canvas.cover)
    return alpha


def back_of_hair(person: Person) -> Array | None:
    """Contour (n, 2) of the hair behind the head, as long as the style; None for the bald."""
    if person.hair_style == "bald":
        return None
    length, wide = LENGTHS[person.hair_style], person.width + 0.75 * _volume(person)
    flare = 1 + 0.08 * length
    right = np.array([[flare * wide, 0.5 * length], [0.9 * flare * wide, length]])
    return np.concatenate([_crown(person), right, (right * [-1, 1])[::-1]]).astype(np.float32)


def front_of_hair(person: Person, rng: np.random.Generator) -> Array | None:
    """Contour (n, 2) of the hair over the skull down to the hairline; None for the bald."""
    if person.hair_style == "bald":
        return None
    u = np.linspace(-1, 1, 25)
    fringe = person.eye_height - person.brow_height - 0.04
    low = fringe if person.hair_style == "fringe" else person.hairline
    temple = -0.02 if person.hair_style != "short" else -0.15
    line = low + (temple - low) * np.clip((np.abs(u) - 0.62) / 0.38, 0, 1) ** 1.5
    if person.hair_style in ("side", "medium", "long"):
        part = u - person.parting
        line = line + np.clip(0.55 * np.abs(part) ** 1.4 - 0.04, -0.05, 0.32) * (1 - u**4)
    line = line + rng.normal(0, 0.014, len(u))
    edge = np.stack([(person.width + 0.01) * u, line], 1)
    return np.concatenate([edge, _crown(person)[::-1]]).astype(np.float32)


def _strands(canvas: Canvas, parting: float, rng: np.random.Generator) -> Array:
    """Streaks (N, N) along rays from the parting: noise that is fine in angle and coarse in distance."""
    noise = cv2.GaussianBlur(rng.standard_normal((8, 360), np.float32), (0, 0), 0.6) * 1.6
    u, v = np.meshgrid(canvas.axis - np.float32(parting), canvas.axis + np.float32(0.75))
    column = cv2.phase(u, v) * np.float32(359 / (2 * np.pi))
    return cv2.remap(noise, column, 3 * np.hypot(u, v), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _volume(person: Person) -> float:
    return person.hair_volume * (1.7 if person.hair_style == CURLY else 1)


def _crown(person: Person) -> Array:
    """The hair's outer contour above the ears, left to right."""
    contour = anatomy.outline(person, 64)
    above = contour[contour[:, 1] < 0.02] * (1 + _volume(person) / np.hypot(person.width, 1))
    return above[np.argsort(above[:, 0])]
