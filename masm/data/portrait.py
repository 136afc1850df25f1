"""Painting a head on its canvas: skin, eyes, brows, nose, mouth, glasses. Colours are linear light."""

from __future__ import annotations

import cv2
import numpy as np

from masm.data import anatomy
from masm.data.anatomy import Array, Person, Photograph
from masm.data.canvas import EVERYWHERE, EXTENT, Canvas, ellipse, fractal, gaussians
from masm.data.hair import back_of_hair, front_of_hair, hair_shades, paint_hair

DARK = np.array([0.012, 0.009, 0.008], np.float32)


def paint_head(canvas: Canvas, person: Person, photograph: Photograph, rng: np.random.Generator) -> Array:
    """Paint everything but the light; returns the coverage (N, N) of hair, which shines differently.

    `rng` draws what belongs to the person beyond `Person`: skin texture, moles, single hairs.
    """
    texture = skin_texture(rng, canvas.size, person)
    hair_colour = hair_shades(canvas, person, rng)
    back = paint_hair(canvas, back_of_hair(person), hair_colour)
    skin = person.skin * (1 + texture[..., None] * np.array([0.9, 1.0, 1.05], np.float32))
    _paint_skin(canvas, person, skin)
    _paint_complexion(canvas, person, photograph, rng)
    _paint_nose(canvas, person)
    _paint_mouth(canvas, person, photograph)
    for side in (-1, 1):
        _paint_eye(canvas, person, photograph, side)
        _paint_brow(canvas, person, anatomy.brow(person, photograph, side, 40), side, rng)
    front = paint_hair(canvas, front_of_hair(person, rng), hair_colour)
    if person.glasses:
        _paint_glasses(canvas, person)
    face = canvas.mask(anatomy.outline(person))
    return np.maximum(back * (1 - face), front)


def skin_texture(rng: np.random.Generator, size: int, person: Person) -> Array:
    """Relative brightness (size, size) of a person's skin: blotches, fine structure, and pores."""
    blotches = 0.018 * fractal(rng, size, (5, 11, 24, 48), decay=0.8)
    pores = rng.standard_normal((size, size), np.float32)
    pores = 0.5 * pores + 1.2 * cv2.GaussianBlur(pores, (0, 0), 1.0)
    return blotches + np.float32(0.022 + 0.026 * person.age) * pores


def _paint_skin(canvas: Canvas, person: Person, skin: Array) -> None:
    width, chin = person.width, person.chin
    ears = [ellipse(side * (width + 0.02), 0.1, 0.085, 0.2) for side in (-1, 1)]
    half = 0.62 * width
    neck = [[-half, 0.4], [half, 0.4], [half, chin + 0.2], [1.25 * half, EXTENT + 0.1],
            [-1.25 * half, EXTENT + 0.1], [-half, chin + 0.2]]  # fmt: skip
    for shape, shade in ((neck, 0.62), (ears[0], 0.72), (ears[1], 0.72), (anatomy.outline(person), 1.0)):
        alpha = canvas.mask(shape, 0.006)
        canvas.blend(EVERYWHERE, alpha, np.float32(shade) * skin)
        np.maximum(canvas.cover, alpha, out=canvas.cover)
    for side in (-1, 1):
        canvas.tint(ellipse(side * (width + 0.035), 0.08, 0.04, 0.12), (0.6, 0.5, 0.5), 0.02)


def _paint_complexion(canvas: Canvas, person: Person, photograph: Photograph, rng: np.random.Generator) -> None:
    """Redness, shadows under the eyes, stubble, freckles, moles and wrinkles."""
    eye_u, eye_v, tip = person.eye_distance, person.eye_height, person.nose_length
    red: list[tuple[float, ...]] = [(1.0, side * 0.42, 0.26, 0.16, 0.14) for side in (-1, 1)]
    red += [(0.8, 0, tip, 0.1, 0.09), (0.35, 0, person.chin - 0.12, 0.2, 0.1)]
    redness = gaussians(red, canvas.axis, canvas.axis) * np.float32(0.10 + 0.12 * person.makeup)
    hollow = [(1.0, side * eye_u, eye_v + 0.03, 0.14, 0.09) for side in (-1, 1)]
    shadow = gaussians(hollow, canvas.axis, canvas.axis) * np.float32(0.16 + 0.12 * person.age)
    canvas.colour *= 1 - redness[..., None] * np.array([-0.2, 1, 0.8], np.float32)
    canvas.colour *= 1 - shadow[..., None] * np.array([0.8, 1, 0.9], np.float32)
    if person.beard > 0:
        _paint_beard(canvas, person, rng)
    _paint_spots(canvas, person, rng)
    _paint_wrinkles(canvas, person, photograph)


def _paint_beard(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    mouth = person.mouth_v
    growth = [(1.2, 0.0, person.chin - 0.02, 0.38, 0.17), (0.6, 0, mouth - 0.11, 0.17, 0.035)]
    growth += [(0.8, side * 0.55, mouth - 0.02, 0.14, 0.2) for side in (-1, 1)]
    growth += [(-0.9, 0, mouth + 0.02, 0.15, 0.06)]
    stubble = rng.standard_normal((canvas.size, canvas.size), np.float32)
    area = np.clip(gaussians(growth, canvas.axis, canvas.axis), 0, 1) * (0.75 + 0.3 * stubble)
    alpha = np.clip(area * np.float32(person.beard * 0.85), 0, 0.95) * canvas.mask(anatomy.outline(person))
    canvas.blend(EVERYWHERE, alpha, 0.8 * person.hair + 0.004)


def _paint_spots(canvas: Canvas, person: Person, rng: np.random.Generator) -> None:
    freckles = int(90 * person.freckles)
    for _ in range(freckles):
        u, v, radius = rng.normal(0, 0.33), rng.normal(0.15, 0.14), rng.uniform(0.006, 0.014)
        canvas.tint(ellipse(u, v, radius, radius, 8), (0.84, 0.72, 0.62))
    for _ in range(int(rng.integers(0, 4))):
        u, v, radius = rng.uniform(-0.55, 0.55), rng.uniform(-0.5, 0.8), rng.uniform(0.01, 0.022)
        canvas.tint(ellipse(u, v, radius, radius, 10), (0.4, 0.3, 0.28), 0.006)


def _paint_wrinkles(canvas: Canvas, person: Person, photograph: Photograph) -> None:
    """Folds from nose to mouth, and lines on the forehead, under the eyes and beside them."""
    smile, age = max(photograph.smile, 0), person.age
    depth = np.array([0.75, 0.62, 0.58], np.float32)
    corner = person.mouth_width * (1.25 + 0.15 * smile)
    for side in (-1, 1):
        fold = [[person.nose_width + 0.02, person.nose_length - 0.01], [0.24, 0.5 * person.nose_length + 0.25],
                [corner, person.mouth_v - 0.02], [corner - 0.02, person.mouth_v],
                [0.22, 0.5 * person.nose_length + 0.28]]  # fmt: skip
        canvas.tint(np.multiply(fold, [side, 1]), 1 - (1 - depth) * (0.25 + 0.5 * smile + 0.5 * age), 0.018)
        for line in range(3):
            start = np.array([side * (person.eye_distance + person.eye_width + 0.03), person.eye_height])
            ray = np.array([side * 0.09, (line - 1) * 0.05 + 0.01])
            canvas.strokes([np.stack([start, start + ray])], DARK, 0.16 * smile * age + 0.08 * age)
    u = np.linspace(-0.4, 0.4, 12)
    lines = [np.stack([u, -0.5 - 0.085 * line + 0.02 * np.cos(5 * u + line)], 1) for line in range(3)]
    canvas.strokes(lines, 0.5 * person.skin, 0.4 * age**1.5)


def _paint_nose(canvas: Canvas, person: Person) -> None:
    wing, tip = person.nose_width, person.nose_length
    for side in (-1, 1):
        canvas.tint(ellipse(side * 0.98 * wing, tip + 0.02, 0.016, 0.05), (0.72, 0.62, 0.6), 0.012)
        nostril = ellipse(side * 0.5 * wing, tip + 0.058, 0.3 * wing, 0.02)
        canvas.fill(nostril, 0.12 * person.skin, 0.010, 0.85)
    canvas.tint(ellipse(0, tip + 0.075, 0.8 * wing, 0.02), (0.72, 0.64, 0.62), 0.02)


def _paint_mouth(canvas: Canvas, person: Person, photograph: Photograph) -> None:
    lips = anatomy.mouth(person, photograph)
    tint = 1 - (1 - person.lips) * (0.75 + 0.4 * person.makeup)
    upper = np.concatenate([lips["upper_outer"], lips["upper_inner"][::-1]])
    lower = np.concatenate([lips["lower_inner"], lips["lower_outer"][::-1]])
    canvas.tint(upper, 0.82 * tint, 0.008)
    canvas.tint(lower, tint, 0.010)
    inside = np.concatenate([lips["upper_inner"], lips["lower_inner"][::-1]])
    if photograph.opening > 0:
        canvas.fill(inside, (0.05, 0.012, 0.012))
        _paint_teeth(canvas, person, lips, photograph.opening)
    canvas.strokes([lips["upper_inner"]], 0.10 * person.skin * person.lips, 0.75, 0.008)
    canvas.tint(ellipse(0, person.mouth_v + 0.13, 0.15, 0.02), (0.85, 0.8, 0.8), 0.02)


def _paint_teeth(canvas: Canvas, person: Person, lips: dict[str, Array], opening: float) -> None:
    top, bottom = lips["upper_inner"][1:-1], lips["lower_inner"][1:-1]
    edge = top + 0.72 * np.minimum(bottom - top, 0.07)
    canvas.fill(np.concatenate([top, edge[::-1]]), _white(person), 0.004, min(4 * opening, 0.95))
    between = [u for u in np.arange(-3.5, 4) * 0.048 if abs(u) < 0.8 * person.mouth_width]
    gaps = [np.array([[u, top[:, 1].mean()], [u, edge[:, 1].mean()]]) for u in between]
    canvas.strokes(gaps, (0.2, 0.15, 0.12), 0.3)


def _paint_eye(canvas: Canvas, person: Person, photograph: Photograph, side: int) -> None:
    upper, lower = anatomy.eye(person, photograph, side)
    lift = np.array([0, 0.045])
    crease = np.concatenate([upper - 1.15 * lift, (upper - 0.8 * lift)[::-1]])
    lid = np.concatenate([upper - lift, upper[::-1]])
    canvas.tint(lid, 1 - np.array([0.12, 0.2, 0.18], np.float32) * (1 + 1.5 * person.makeup), 0.015)
    canvas.tint(crease, (0.55, 0.45, 0.42), 0.008)
    opening = np.concatenate([upper, lower[::-1]])
    canvas.fill(opening, _white(person), 0.003)
    _paint_iris(canvas, person, photograph, opening)
    canvas.tint(np.concatenate([upper, (upper + 0.5 * lift)[::-1]]), (0.55, 0.55, 0.55), 0.008)
    lash = 0.012 + 0.014 * person.makeup
    lashes = np.concatenate([upper - np.array([0, lash]), (upper + np.array([0, 0.006]))[::-1]])
    canvas.fill(lashes, DARK, 0.004, 0.9)
    canvas.strokes([lower], 0.25 * person.skin, 0.45 + 0.2 * person.makeup)
    inner = upper[-1] if side < 0 else upper[0]
    canvas.fill(ellipse(inner[0] - side * -0.012, inner[1], 0.014, 0.01, 10), (0.4, 0.16, 0.14), 0.006)


def _white(person: Person) -> Array:
    """The white of eyes and teeth, dimmed for dark skin: photographs of it are exposed longer."""
    return np.array([0.6, 0.55, 0.5], np.float32) * np.float32(0.45 + 0.55 * min(person.skin.mean() / 0.4, 1))


def _paint_iris(canvas: Canvas, person: Person, photograph: Photograph, opening: Array) -> None:
    window, inside = canvas.patch(opening)
    radius = 0.076
    u = canvas.axis[window[1]] - (opening[:, 0].mean() + photograph.gaze[0])
    v = canvas.axis[window[0]] - (person.eye_height + photograph.gaze[1] - 0.008)
    distance = np.hypot(u[None, :], v[:, None]) / radius
    edge = 2.0 * radius * canvas.unit  # a pixel's width of transition
    rays = np.cos(17 * np.arctan2(v[:, None], u[None, :] + 1e-6) + 9 * person.width)
    shade = (0.55 + 0.75 * distance) * (1 + 0.18 * rays) * np.clip(1.9 - 1.5 * distance, 0.25, 1)
    iris = shade[..., None] * person.iris
    pupil = np.clip((0.4 - distance) * edge + 0.5, 0, 1)[..., None]
    iris += pupil * (DARK - iris)
    canvas.blend(window, inside * np.clip((1 - distance) * edge + 0.5, 0, 1), iris.astype(np.float32))
    spot_u, spot_v = 0.45 * radius * photograph.light[:2]
    spark = np.exp(-((u[None, :] - spot_u) ** 2 + (v[:, None] - spot_v) ** 2) / (0.17 * radius) ** 2)
    canvas.blend(window, (0.9 * spark * inside).astype(np.float32), np.array([1.6, 1.6, 1.6], np.float32))


def _paint_brow(canvas: Canvas, person: Person, line: Array, side: int, rng: np.random.Generator) -> None:
    taper = np.linspace(1, 0.35, 40)[:, None] * [0, person.brow_thickness]
    colour = 0.55 * person.hair + 0.1 * person.skin
    canvas.fill(np.concatenate([line - 0.8 * taper, (line + 0.8 * taper)[::-1]]), colour, 0.012, 0.55)
    roots = line + taper * rng.uniform(-1, 1, (40, 1))
    lean = np.linspace(0.2, 1.2, 40)[:, None] * [side * 0.05, 0.012] + [0, -0.035]
    tips = roots + lean * rng.uniform(0.6, 1.2, (40, 1))
    canvas.strokes(list(np.stack([roots, tips], 1)), 0.5 * colour, 0.55)


def _paint_glasses(canvas: Canvas, person: Person) -> None:
    rims = [ellipse(side * person.eye_distance, person.eye_height + 0.02, 0.22, 0.16, 28) for side in (-1, 1)]
    inner = person.eye_distance - 0.22
    level = person.eye_height
    bridge = np.array([[-inner, level], [0, level - 0.02], [inner, level]])
    arms = [np.array([[s * (person.eye_distance + 0.21), -0.08], [s * person.width, -0.06]]) for s in (-1, 1)]
    frame = [np.concatenate([rim, rim[:1]]) for rim in rims] + [bridge, *arms]
    canvas.strokes(frame, 0.5 * DARK + 0.15 * person.hair, 0.9, 0.016)
