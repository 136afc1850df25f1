"""The five forgeries. A method's fields are its parameters, each drawn from the range beside its name.

Lengths are fractions of the longer side of the face box, in `Reenact` of the distance between the eyes.
What all have in common is what real forgeries have: inside the mask the pixels were interpolated or
synthesised, so the camera's noise is smoothed or altered there. The methods and the ranges are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Annotated, Self, get_type_hints

import cv2
import numpy as np

from masm.data.faces import Face
from masm.data.forge import geometry, pixels
from masm.errors import UserError


@dataclass(frozen=True)
class Between:
    """A parameter that is drawn uniformly from low..high."""

    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """One value."""
        return float(rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class OneOf:
    """A parameter that is drawn from names."""

    options: tuple[str, ...]

    def draw(self, rng: np.random.Generator) -> str:
        """One name."""
        return self.options[rng.integers(len(self.options))]


@dataclass(frozen=True)
class Seed:
    """A parameter that seeds a generator of its own."""

    def draw(self, rng: np.random.Generator) -> int:
        """One seed."""
        return int(rng.integers(2**31))


@dataclass(frozen=True)
class Scene:
    """What a method works from: the face, where it will be replaced (H, W) uint8, and who takes its place."""

    face: Face
    mask: np.ndarray
    donor: Face | None


@dataclass(frozen=True)
class Method(ABC):
    """A way to change a face. `size` scales the replaced region, `feather` is the width of its border."""

    size: Annotated[float, Between(0.85, 1.02)]
    feather: Annotated[float, Between(0.02, 0.05)]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw every parameter."""
        hints = get_type_hints(cls, include_extras=True)
        return cls(**{each.name: hints[each.name].__metadata__[0].draw(rng) for each in fields(cls)})

    def mask(self, face: Face) -> np.ndarray:
        """Blending weights 0..255: (H, W) uint8."""
        polygon = self.reshape(geometry.outline(face, self.size))
        return pixels.feathered(polygon, self.feather * _side(face), face.image.shape[:2])

    def reshape(self, polygon: np.ndarray) -> np.ndarray:
        """Change the outline of the mask; most methods leave it."""
        return polygon

    @abstractmethod
    def render(self, scene: Scene) -> np.ndarray:
        """The changed face, in place, before blending: (H, W, 3), levels 0..255."""


@dataclass(frozen=True)
class Swap(Method):
    """The face of the donor, aligned by landmarks, in the target's colours, at a generator's resolution."""

    interpolation: Annotated[str, OneOf(("cubic", "lanczos"))]
    grain: Annotated[float, Between(4, 10)]
    resolution: Annotated[float, Between(0.55, 0.9)]
    sharpening: Annotated[float, Between(0.3, 0.9)]

    def render(self, scene: Scene) -> np.ndarray:
        """Warp the donor onto the face."""
        face, donor = scene.face, scene.donor
        if donor is None:
            raise UserError(f"a swap of {face.photograph} needs a donor: give the face of another person")
        ours, theirs, side = landmarks_of(face), landmarks_of(donor), _side(face)
        places = geometry.correspondence(ours, theirs, 0.12 * side, face.image.shape[:2])
        aligned = geometry.sample(donor.image, places, pixels.INTERPOLATIONS[self.interpolation])
        matched = pixels.match_colour(aligned, face.image, scene.mask)
        lit = pixels.match_border(matched, face.image, scene.mask, 0.2 * side)
        return pixels.rerender(lit, self.grain, self.resolution, self.interpolation, self.sharpening)


@dataclass(frozen=True)
class Reenact(Method):
    """Another expression of the same face: eyes, nose and mouth corners move, and pull the rest along."""

    turn: Annotated[float, Between(-0.06, 0.06)]
    nod: Annotated[float, Between(-0.06, 0.06)]
    smile: Annotated[float, Between(-0.12, 0.12)]
    lift: Annotated[float, Between(-0.10, 0.10)]
    brows: Annotated[float, Between(-0.06, 0.06)]
    nose: Annotated[float, Between(-0.06, 0.06)]
    interpolation: Annotated[str, OneOf(("cubic", "lanczos"))]
    grain: Annotated[float, Between(4, 10)]
    resolution: Annotated[float, Between(0.55, 0.9)]
    sharpening: Annotated[float, Between(0.3, 0.9)]

    def render(self, scene: Scene) -> np.ndarray:
        """Warp the face so that its landmarks come to lie where the expression wants them."""
        image, points = scene.face.image, landmarks_of(scene.face)[:5]
        unit = float(np.linalg.norm(points[1] - points[0]))
        moves = unit * self.moves()
        # Backward warping: the pixel where a landmark arrives reads from where it was.
        back = geometry.smooth_field(points + moves, -moves, 0.4 * unit, image.shape[:2])
        places = geometry.transformed_grid(np.eye(2, 3), image.shape[:2]) + back
        warped = geometry.sample(image, places, pixels.INTERPOLATIONS[self.interpolation])
        return pixels.rerender(warped, self.grain, self.resolution, self.interpolation, self.sharpening)

    def moves(self) -> np.ndarray:
        """Displacements of the first five landmarks over the distance between the eyes: (5, 2)."""
        eye, nose = (0, self.brows), (self.nose, 0)
        mouth = (-self.smile, -self.lift), (self.smile, -self.lift)
        return np.array([eye, eye, nose, *mouth]) + np.array([self.turn, self.nod])


@dataclass(frozen=True)
class SelfBlend(Method):
    """The face under a copy of itself that was shifted, recoloured and resampled a little.

    The idea is that of Shiohara and Yamasaki, "Self-blended images", 2022; the steps and ranges are ours.
    """

    shape_seed: Annotated[int, Seed()]
    across: Annotated[float, Between(-0.02, 0.02)]
    down: Annotated[float, Between(-0.02, 0.02)]
    degrees: Annotated[float, Between(-1.5, 1.5)]
    zoom: Annotated[float, Between(0.98, 1.02)]
    brightness: Annotated[float, Between(-5, 5)]
    contrast: Annotated[float, Between(0.94, 1.06)]
    warmth: Annotated[float, Between(-0.03, 0.03)]
    interpolation: Annotated[str, OneOf(("cubic", "lanczos"))]
    grain: Annotated[float, Between(2, 9)]
    resolution: Annotated[float, Between(0.65, 1.0)]
    sharpening: Annotated[float, Between(0.0, 0.8)]

    def reshape(self, polygon: np.ndarray) -> np.ndarray:
        """Draw the outline in a tenth, and let it wave in and out by some tenths."""
        rng = np.random.default_rng(self.shape_seed)
        orders = np.arange(1, 5)
        heights, phases = rng.uniform(0, 0.12, 4) / np.sqrt(orders), rng.uniform(0, 2 * np.pi, 4)
        centre = polygon.mean(0)
        angles = np.arctan2(*(polygon - centre).T)
        waves = np.cos(angles[:, None] * orders + phases) @ heights
        return centre + (polygon - centre) * (0.9 + waves[:, None])

    def render(self, scene: Scene) -> np.ndarray:
        """Recolour, shift and resample the photograph."""
        face = scene.face
        tint = np.array([1 + self.warmth, 1, 1 - self.warmth], np.float32)
        copy = tint * ((face.image - np.float32(128)) * self.contrast + 128 + self.brightness)
        shift = _side(face) * np.array([self.across, self.down])
        matrix = geometry.motion(face.box[:2] + face.box[2:] / 2, self.degrees, self.zoom, shift)
        places = geometry.transformed_grid(matrix, face.image.shape[:2])
        moved = geometry.sample(copy, places, pixels.INTERPOLATIONS[self.interpolation])
        return pixels.rerender(moved, self.grain, self.resolution, self.interpolation, self.sharpening)


@dataclass(frozen=True)
class Upsample(Method):
    """The face enlarged from fewer pixels, as the last layers of a generator do it."""

    factor: Annotated[float, Between(1.25, 1.7)]
    kernel: Annotated[str, OneOf(("nearest", "zero_insertion", "bicubic"))]
    imbalance: Annotated[float, Between(-0.01, 0.01)]
    sharpening: Annotated[float, Between(0.2, 0.8)]

    def render(self, scene: Scene) -> np.ndarray:
        """Shrink by the factor and enlarge by the kernel."""
        image = scene.face.image.astype(np.float32)
        height, width = image.shape[:2]
        size = round(width / self.factor), round(height / self.factor)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return pixels.sharpen(self._enlarge(small, (width, height)), self.sharpening)

    def _enlarge(self, small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if self.kernel == "nearest":  # a generator's convolution follows: a small smoothing kernel
            large = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)
            kernel = np.array([0.125, 0.75, 0.125], np.float32)
            return cv2.sepFilter2D(large, -1, kernel, kernel)
        if self.kernel == "zero_insertion":
            return cv2.resize(pixels.zero_insertion(small, self.imbalance), size, interpolation=cv2.INTER_LINEAR)
        return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Denoise(Method):
    """The face without the camera's noise, as a decoder paints it: edges stay, grain goes."""

    filter: Annotated[str, OneOf(("bilateral", "guided"))]
    strength: Annotated[float, Between(12, 28)]
    sharpening: Annotated[float, Between(0.0, 0.4)]

    def render(self, scene: Scene) -> np.ndarray:
        """Smooth what is fainter than `strength` grey levels, and sharpen what is left."""
        image = scene.face.image.astype(np.float32)
        if self.filter == "guided":
            smooth = pixels.guided_filter(image, 2, self.strength)
        else:
            smooth = cv2.bilateralFilter(image, 5, 2.5 * self.strength, 2.0)
        return pixels.sharpen(smooth, self.sharpening)


def landmarks_of(face: Face) -> np.ndarray:
    """The landmarks (n, 2) of a face whose forgery needs them; UserError where it has none."""
    if face.landmarks is None:
        raise UserError(
            f"{face.photograph} has no landmarks, which swap and reenact need: use the detector yunet, "
            f"or leave these forgeries out"
        )
    return face.landmarks


def _side(face: Face) -> float:
    return float(face.box[2:].max())
