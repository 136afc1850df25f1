"""The people of the drawn faces: who they are, how a photograph finds them, and where their features lie.

Head coordinates: u to the image's right, v down, z towards the viewer; one unit is about half a head's
height, and the origin lies between the eyes and the nose. All of it is ours: plausible proportions, not
measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SKIN_TONES = np.array(  # sRGB, light to dark
    [[243, 212, 196], [228, 184, 158], [208, 157, 125], [176, 124, 92], [128, 84, 60], [82, 52, 39]]
)
HAIR_COLOURS = np.array(  # sRGB
    [[22, 18, 17], [48, 33, 25], [84, 57, 38], [128, 90, 56], [184, 148, 96], [136, 66, 38], [166, 164, 162]]
)
IRIS_COLOURS = np.array([[60, 36, 22], [88, 56, 32], [112, 92, 52], [88, 108, 82], [92, 122, 148]])  # sRGB
HAIR_STYLES = ("bald", "short", "short", "side", "fringe", "medium", "long", "curly")


def linear(colour: NDArray) -> Array:
    """Linear light in [0, 1] of a colour in 0..255, by the square law that `draw_face` encodes with."""
    return np.asarray((np.asarray(colour) / 255.0) ** 2, np.float32)


@dataclass(frozen=True)
class Person:
    """What stays the same in all photographs of a person; lengths in head units, colours in linear light."""

    width: float
    chin: float
    skull: float
    squareness: float
    taper: float
    eye_distance: float
    eye_height: float
    eye_width: float
    eye_opening: float
    eye_tilt: float
    brow_height: float
    brow_arch: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    nose_depth: float
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    cheekbones: float
    age: float
    oiliness: float
    beard: float
    freckles: float
    glasses: bool
    makeup: float
    skin: Array
    lips: Array
    hair: Array
    iris: Array
    hair_style: str
    hair_volume: float
    hairline: float
    parting: float

    @property
    def mouth_v(self) -> float:
        """Height of the closed mouth's middle line."""
        return self.nose_length + self.mouth_height


@dataclass(frozen=True)
class Photograph:
    """What a single photograph adds: pose in radians, expression in [0, 1], framing as shares, and light."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    centre: tuple[float, float]
    smile: float
    opening: float
    brow_raise: float
    gaze: tuple[float, float]
    eye_squint: float
    light: Array
    light_colour: Array
    ambient_colour: Array
    exposure: float


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a person's build, colours and hair."""
    between = rng.uniform
    tone = (len(SKIN_TONES) - 1.001) * between() ** 1.3
    skin = _mix(SKIN_TONES, tone) * (1 + rng.normal(0, 0.03, 3))
    feminine = between()
    return Person(
        width=between(0.68, 0.82), chin=between(0.92, 1.1), skull=between(1.08, 1.2),
        squareness=between(1.9, 2.5) + 0.25 * (feminine < 0.4), taper=between(0.06, 0.26),
        eye_distance=between(0.29, 0.36), eye_height=between(-0.16, -0.06), eye_width=between(0.135, 0.18),
        eye_opening=between(0.045, 0.08), eye_tilt=between(-0.012, 0.03),
        brow_height=between(0.14, 0.23), brow_arch=between(0.01, 0.07), brow_thickness=between(0.018, 0.05),
        nose_length=between(0.27, 0.42), nose_width=between(0.105, 0.18), nose_depth=between(0.7, 1.3),
        mouth_height=between(0.2, 0.29), mouth_width=between(0.22, 0.31),
        upper_lip=between(0.022, 0.06), lower_lip=between(0.035, 0.08),
        cheekbones=between(0.4, 1.3), age=between() ** 1.5, oiliness=between(0.05, 0.3),
        beard=between(0.25, 1) if feminine < 0.2 else 0.0, freckles=between(0, 1) * (between() < 0.35),
        glasses=bool(between() < 0.14), makeup=between(0.3, 1) if feminine > 0.6 else between(0, 0.15),
        skin=linear(np.clip(skin, 0, 255)),
        lips=np.array([between(0.75, 0.95), between(0.42, 0.66), between(0.45, 0.7)], np.float32),
        hair=linear(HAIR_COLOURS[_hair_index(rng, tone)] * between(0.8, 1.2)),
        iris=linear(_mix(IRIS_COLOURS, min(between(0, 4.4), 6 - 1.2 * tone if tone > 2 else 3.999))),
        hair_style=str(rng.choice(HAIR_STYLES)) if feminine < 0.7 else str(rng.choice(HAIR_STYLES[3:])),
        hair_volume=between(0.06, 0.22), hairline=between(-0.82, -0.58), parting=between(-0.4, 0.4),
    )  # fmt: skip


def sample_photograph(rng: np.random.Generator) -> Photograph:
    """Draw a photograph's pose, expression, framing and light."""
    between = rng.uniform
    azimuth, elevation = between(-1.2, 1.2), between(-0.25, 0.95)
    direction = [np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
    warmth, sky = between(-0.16, 0.16), between(-0.1, 0.1)
    key, ambient = between(0.75, 1.25), between(0.25, 0.6)
    smiling = between() < 0.5
    return Photograph(
        yaw=rng.normal(0, 0.16), pitch=rng.normal(0, 0.09), roll=rng.normal(0, 0.07),
        scale=between(0.30, 0.34), centre=(between(0.46, 0.54), between(0.46, 0.51)),
        smile=between(0.3, 1) if smiling else between(-0.2, 0.2),
        opening=between(0.2, 1) if between() < (0.6 if smiling else 0.2) else 0.0,
        brow_raise=rng.normal(0, 0.018), gaze=(rng.normal(0, 0.015), rng.normal(0, 0.006)),
        eye_squint=between(0.75, 1.15), light=np.array(direction, np.float32),
        light_colour=np.array([key * (1 + warmth), key, key * (1 - warmth)], np.float32),
        ambient_colour=np.array([ambient * (1 + sky), ambient, ambient * (1 - sky)], np.float32),
        exposure=between(0.2, 0.33),
    )  # fmt: skip


def outline(person: Person, count: int = 48) -> Array:
    """The head's contour (count, 2), from the image's right at eye level over the chin and the skull."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    power = 2 / np.where(s > 0, person.squareness, 2.35)
    narrowing = np.where(s > 0, person.taper, 0.04) * s**2
    u = person.width * np.sign(c) * np.abs(c) ** power * (1 - narrowing)
    v = np.where(s > 0, person.chin, person.skull) * np.sign(s) * np.abs(s) ** power
    return np.stack([u, v], 1).astype(np.float32)


def eye(person: Person, photograph: Photograph, side: int) -> tuple[Array, Array]:
    """Upper and lower lid (9, 2) each, left to right in the image; side is -1 for the image's left eye."""
    x = np.linspace(-1, 1, 9)
    u = side * person.eye_distance + person.eye_width * x
    middle = person.eye_height - side * x * person.eye_tilt
    opening = person.eye_opening * photograph.eye_squint * (1 - 0.25 * max(photograph.smile, 0))
    upper = middle - 1.25 * opening * (1 - x**2) ** 0.75 * (1 - 0.18 * side * x)
    lower = middle + 0.75 * opening * (1 - x**2) ** 0.9
    return _points(u, upper), _points(u, lower)


def brow(person: Person, photograph: Photograph, side: int, count: int = 7) -> Array:
    """A brow's middle line (count, 2) from the nose outwards."""
    x = np.linspace(0, 1, count)
    u = side * (person.eye_distance - 1.1 * person.eye_width + 2.5 * person.eye_width * x)
    rise = person.brow_arch * np.sin(np.pi * np.clip(x * 1.1 - 0.1, 0, 1)) * 1.5 - 0.02 * x
    v = person.eye_height - person.brow_height - photograph.brow_raise - rise + 0.05 * x**3
    return _points(u, v)


def mouth(person: Person, photograph: Photograph) -> dict[str, Array]:
    """The edges of the lips, outer and inner, (13, 2) each, left to right."""
    x = np.linspace(-1, 1, 13)
    u = person.mouth_width * (1 + 0.16 * max(photograph.smile, 0) - 0.08 * photograph.opening) * x
    bow = 0.006 * np.cos(3 * np.pi * x) * (1 - x**2)
    middle = person.mouth_v - 0.07 * photograph.smile * x**2 - bow
    arc = np.sqrt(1 - x**2)
    gap = 0.085 * photograph.opening * (1 - x**2)
    upper = person.upper_lip * arc * (1 - 0.35 * np.exp(-((x / 0.14) ** 2)))
    return {
        "upper_outer": _points(u, middle - 0.3 * gap - upper),
        "upper_inner": _points(u, middle - 0.3 * gap),
        "lower_inner": _points(u, middle + 0.7 * gap),
        "lower_outer": _points(u, middle + 0.7 * gap + person.lower_lip * arc),
    }


def landmarks(person: Person, photograph: Photograph) -> Array:
    """Landmarks (76, 2): eye centres, nose tip, mouth corners; then outline, brows, eyes, nose, mouth."""
    lids = {side: eye(person, photograph, side) for side in (-1, 1)}
    lips = mouth(person, photograph)
    centres = [np.concatenate(lids[side]).mean(0) for side in (-1, 1)]
    five = np.array([*centres, [0, person.nose_length], lips["upper_inner"][0], lips["upper_inner"][-1]])
    jaw = outline(person, 48)[:25]  # ear to ear over the chin
    brows = [brow(person, photograph, side, 5) for side in (-1, 1)]
    eyes = [np.concatenate([upper[::2], lower[2:-1:2]]) for upper, lower in lids.values()]
    wing = person.nose_width
    nose = np.array([[0, -0.02], [0, person.nose_length / 2], [-wing, person.nose_length + 0.03],
                     [0, person.nose_length + 0.07], [wing, person.nose_length + 0.03]])  # fmt: skip
    edges = [lips["upper_outer"][2:-1:2], lips["lower_inner"][2:-1:2], lips["lower_outer"][2:-1:2]]
    return np.concatenate([five, jaw, *brows, *eyes, nose, *edges]).astype(np.float32)


def relief(person: Person, photograph: Photograph) -> Array:
    """Bumps on the head's ellipsoid (n, 5): height, u, v, width in u, width in v (Gaussian sigmas)."""
    eye_u, eye_v, tip = person.eye_distance, person.eye_height, person.nose_length
    depth, wing, lip_v = person.nose_depth, person.nose_width, person.mouth_v
    smile, age = max(photograph.smile, 0), person.age
    middle = [
        (0.05 * depth, 0, tip - 0.34, 0.06, 0.10), (0.08 * depth, 0, tip - 0.2, 0.07, 0.10),
        (0.09 * depth, 0, tip - 0.08, 0.08, 0.08), (0.14 * depth, 0, tip, 0.45 * wing + 0.025, 0.065),
        (0.03, 0, lip_v - 0.03, 0.5 * person.mouth_width, 0.025),
        (0.035, 0, lip_v + 0.05, 0.5 * person.mouth_width, 0.03),
        (-0.015, 0, lip_v, 0.45 * person.mouth_width, 0.014), (-0.03, 0, lip_v + 0.13, 0.13, 0.03),
        (0.06, 0, person.chin - 0.12, 0.15, 0.09), (-0.015, 0, (tip + lip_v) / 2, 0.02, 0.05),
    ]  # fmt: skip
    pairs = [
        (0.06 * depth, 0.74 * wing, tip + 0.025, 0.035, 0.038), (-0.10, eye_u, eye_v - 0.01, 0.14, 0.09),
        (0.055, eye_u, eye_v, 0.09, 0.055), (0.045, 0.8 * eye_u, eye_v - person.brow_height, 0.18, 0.05),
        (0.05 * person.cheekbones, 0.47, 0.16, 0.16, 0.14), (0.05 * smile, 0.38, 0.3, 0.12, 0.10),
        (-0.02 - 0.02 * age, eye_u - 0.05, eye_v + 0.14, 0.10, 0.025),
    ]  # fmt: skip
    mirrored = [(height, side * u, v, su, sv) for height, u, v, su, sv in pairs for side in (-1, 1)]
    return np.array(middle + mirrored, np.float32)


def _hair_index(rng: np.random.Generator, tone: float) -> int:
    """Which hair colour: any for light skin, towards black for dark skin."""
    return min(int(rng.integers(0, len(HAIR_COLOURS))), 6 if tone < 2 else int(rng.integers(0, 3)))


def _mix(table: NDArray, position: float) -> NDArray:
    low = int(position)
    return table[low] + (position - low) * (table[min(low + 1, len(table) - 1)] - table[low])


def _points(u: NDArray, v: NDArray) -> Array:
    return np.stack([u, v], 1).astype(np.float32)
