"""Drawn faces: the embedded data. Everything about a face follows from (seed, person, photograph).

A head is painted on a canvas in its own coordinates, lit there by a height field (Lambert plus a slight
specular term), and then warped into the image by its pose, so landmarks and picture agree. All ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from masm.data import anatomy
from masm.data.anatomy import Array, Person, Photograph
from masm.data.canvas import EXTENT, Canvas, gaussians
from masm.data.faces import Face
from masm.data.portrait import paint_head
from masm.data.scenery import background, clothe

CANVAS_DENSITY = 4 / 3  # canvas pixels per image pixel along a side: about 1.5 per pixel of the face
DEPTH = 0.62  # of the head's ellipsoid, towards the viewer


def draw_face(seed: int, person: int, photograph: int, size: int = 192) -> Face:
    """Draw photograph number `photograph` of person number `person`, free of sensor noise.

    Args:
        seed: of the whole data set.
        person: fixes the build, colours, hair and skin texture.
        photograph: fixes pose, expression, light, framing, clothes and background.
        size: side of the square image in pixels; the face box is about half as wide.

    Returns:
        A face with image (size, size, 3), its box from hairline to chin, and 76 landmarks.
    """
    person_rng = np.random.default_rng((seed, 0, person))
    photograph_rng = np.random.default_rng((seed, 1, person, photograph))
    who, how = anatomy.sample_person(person_rng), anatomy.sample_photograph(photograph_rng)
    canvas = Canvas(round(size * CANVAS_DENSITY))
    hair = paint_head(canvas, who, how, person_rng)
    height = _height_field(canvas, who, how)
    # Smoothed, so that no two points of the surface share a pixel: the warp has one solution everywhere.
    pose = _Pose(how, canvas, cv2.GaussianBlur(height, (0, 0), 0.08 * canvas.unit), size)
    head = _light(canvas, who, how, height, hair) * canvas.cover[..., None]
    image = _compose(head, canvas, who, how, pose, photograph_rng)
    landmarks = np.clip(pose.project(anatomy.landmarks(who, how)), 0, size - 1)
    box = _bounding_box(pose.project(_face_contour(who)), size)
    name = f"drawn-{person:05d}"
    return Face(image, box, landmarks, name, f"{name}-{photograph}")


@dataclass(frozen=True)
class _Pose:
    """Weak perspective view of the head: rotates points (u, v, height), scales and shifts them to pixels."""

    photograph: Photograph
    canvas: Canvas
    height: Array
    size: int

    def project(self, points: Array) -> Array:
        """Image pixels (n, 2) of head coordinates (n, 2) on the head's surface."""
        how = self.photograph
        x, y = self.canvas.pixels(points).T
        z = cv2.remap(self.height, x[None], y[None], cv2.INTER_LINEAR)[0]
        turned = np.stack([points[:, 0] * np.cos(how.yaw) + z * np.sin(how.yaw),
                           points[:, 1] * np.cos(how.pitch) + z * np.sin(how.pitch)], 1)  # fmt: skip
        centre = self.size * np.array(how.centre)
        return (turned @ self._roll().T * how.scale * self.size + centre - 0.5).astype(np.float32)

    def sources(self) -> tuple[Array, Array]:
        """Canvas pixels (x, y), each (size, size), that the image's pixels show; inverts `project`."""
        how = self.photograph
        axis = np.arange(self.size, dtype=np.float32) + 0.5
        x, y = axis[None, :] - self.size * how.centre[0], axis[:, None] - self.size * how.centre[1]
        (a, b), (c, d) = (self._roll().T / (how.scale * self.size)).astype(np.float32)
        turned_u, turned_v = a * x + b * y, c * x + d * y
        u, v = turned_u, turned_v
        for _ in range(3):  # the height at the sought point is not known before the point is
            z = cv2.remap(self.height, *self._pixels(u, v), cv2.INTER_LINEAR)
            u = (turned_u - z * np.float32(np.sin(how.yaw))) / np.float32(np.cos(how.yaw))
            v = (turned_v - z * np.float32(np.sin(how.pitch))) / np.float32(np.cos(how.pitch))
        return self._pixels(u, v)

    def _pixels(self, u: Array, v: Array) -> tuple[Array, Array]:
        unit, shift = np.float32(self.canvas.unit), np.float32(EXTENT * self.canvas.unit - 0.5)
        return u * unit + shift, v * unit + shift

    def _roll(self) -> np.ndarray:
        c, s = np.cos(self.photograph.roll), np.sin(self.photograph.roll)
        return np.array([[c, -s], [s, c]])


def _height_field(canvas: Canvas, person: Person, photograph: Photograph) -> Array:
    """Height (N, N) of the head's surface above the plane through its outline, in head units."""
    v = canvas.axis[:, None]
    half = 1.07 * np.where(v > 0, person.chin, person.skull)
    narrowing = 1 - np.where(v > 0, person.taper, 0.04) * np.minimum((v / half) ** 2, 1)
    radius = (canvas.axis[None, :] / (1.07 * person.width * narrowing)) ** 2 + (v / half) ** 2
    dome = np.sqrt(np.clip(1 - radius**1.4, 0.0, 1)).astype(np.float32)
    bumps = gaussians(anatomy.relief(person, photograph), canvas.axis, canvas.axis)
    return DEPTH * dome + bumps * np.minimum(3 * dome, 1)


def _light(canvas: Canvas, person: Person, photograph: Photograph, height: Array, hair: Array) -> Array:
    """Light leaving the painted head (N, N, 3), linear, in units of the key light."""
    texture = canvas.colour.mean(2) / (person.skin.mean() + 1e-3)
    skin_height = height + np.float32(0.006) * np.minimum(texture, 1.2) * (1 - hair)
    normal = _normals(cv2.GaussianBlur(skin_height, (0, 0), 0.7), canvas.unit)
    round_normal = _normals(cv2.GaussianBlur(height, (0, 0), 0.12 * canvas.unit), canvas.unit)
    normal = [n + hair * (r - n) for n, r in zip(normal, round_normal, strict=True)]
    light = _rotation(photograph).T @ photograph.light
    half = light + np.array([0, 0, 1])
    shine = np.clip(_dot(normal, half / np.linalg.norm(half)), 0, 1) ** 16
    diffuse = np.clip((_dot(normal, light) + 0.2) / 1.2, 0, None)
    hollows = height - cv2.GaussianBlur(height, (0, 0), 0.08 * canvas.unit)
    open_sky = np.clip(1 + 4 * hollows, 0.45, 1.25) * (0.55 + 0.45 * normal[2])
    irradiance = open_sky[..., None] * photograph.ambient_colour
    irradiance = irradiance + diffuse[..., None] * photograph.light_colour
    gloss = (person.oiliness * (1 - hair) * 0.22 + hair * 0.05) * shine
    return canvas.colour * irradiance + gloss[..., None] * photograph.light_colour


def _normals(height: Array, unit: float) -> list[Array]:
    """Unit normals' u, v and z components, each (N, N)."""
    slope_u = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=unit / 8)
    slope_v = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=unit / 8)
    z = 1 / np.sqrt(1 + slope_u**2 + slope_v**2)
    return [-slope_u * z, -slope_v * z, z]


def _dot(normal: list[Array], direction: np.ndarray) -> Array:
    """Cosine (N, N) between the normals and a unit direction (3,)."""
    u, v, z = (component * np.float32(weight) for component, weight in zip(normal, direction, strict=True))
    return u + v + z


def _rotation(photograph: Photograph) -> Array:
    """Rotation (3, 3) from head to viewer coordinates: pitch and yaw; roll is small and left out."""
    (cy, sy), (cp, sp) = ((np.cos(a), np.sin(a)) for a in (photograph.yaw, photograph.pitch))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return (yaw @ pitch).astype(np.float32)


def _compose(
    head: Array, canvas: Canvas, person: Person, photograph: Photograph, pose: _Pose, rng: np.random.Generator
) -> np.ndarray:
    """The finished image (size, size, 3) uint8: background, warped head, clothes, exposure, gamma."""
    x, y = pose.sources()
    image = background(rng, pose.size)
    image *= 1 - cv2.remap(canvas.cover, x, y, cv2.INTER_LINEAR)[..., None]
    image += cv2.remap(head, x, y, cv2.INTER_LINEAR)
    throat = pose.project(np.array([[0, person.chin + 0.34]], np.float32))[0]
    shoulder = 1.35 * person.width * photograph.scale * pose.size
    clothe(image, rng, (float(throat[0]), float(throat[1])), shoulder)
    face = image[tuple(slice(int(0.35 * pose.size), int(0.65 * pose.size)) for _ in range(2))]
    image *= photograph.exposure / max(float(face.mean()), 0.02) ** 0.7 * 0.25**-0.3
    return np.round(255 * np.sqrt(np.clip(image, 0, 1))).astype(np.uint8)


def _face_contour(person: Person) -> Array:
    contour = anatomy.outline(person)
    return contour[contour[:, 1] > person.hairline]


def _bounding_box(points: Array, size: int) -> Array:
    low, high = np.clip(points.min(0), 0, size), np.clip(points.max(0), 0, size)
    return np.concatenate([low, high - low]).astype(np.float32)
