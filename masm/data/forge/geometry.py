"""Where pixels go: similarities, smooth displacement fields, warps, and the outline of a face."""

from __future__ import annotations

import cv2
import numpy as np

from masm.data.faces import Face

RIDGE = 1e-3
"""Added to the diagonal of the interpolation matrix: landmarks that almost coincide must not fight."""

HULL_SHARE = 0.86
"""Size of the replaced region over that of the landmarks' hull, which reaches the jaw's outline."""


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift that take points `source` to `target` with the least squared error.

    With points as complex numbers this is the regression target = a * source + b (Umeyama 1991, in 2-D).

    Args:
        source: (n, 2) points.
        target: (n, 2) points.

    Returns:
        (2, 3) float64 matrix for `[x, y, 1]`.
    """
    z, w = (points.astype(float) @ [1, 1j] for points in (source, target))
    centred = z - z.mean()
    a = np.vdot(centred, w) / np.vdot(centred, centred).real
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def smooth_field(points: np.ndarray, displacements: np.ndarray, width: float, shape: tuple[int, int]) -> np.ndarray:
    """A displacement of every pixel that has given values at given points and fades away from them.

    Gaussian radial basis functions; a Gaussian is a product over x and y, so the field is one small product.

    Args:
        points: (n, 2) pixels.
        displacements: (n, 2) pixels, wanted at the points.
        width: standard deviation of the Gaussians, in pixels.
        shape: height and width of the field.

    Returns:
        (H, W, 2) float32.
    """
    distances = np.square(points[:, None] - points[None]).sum(-1)
    kernel = np.exp(-distances / (2 * width**2)) + RIDGE * np.eye(len(points))
    weights = np.linalg.solve(kernel, displacements)
    down, across = (
        np.exp(-np.square(np.arange(length)[:, None] - points[None, :, axis]) / (2 * width**2))
        for length, axis in zip(shape, (1, 0), strict=True)
    )
    field = np.stack([(down * weights[:, axis]) @ across.T for axis in (0, 1)], axis=-1)
    return field.astype(np.float32)


def transformed_grid(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Where a (2, 3) matrix takes every pixel of an image: (H, W, 2) float32."""
    y, x = np.indices(shape, dtype=np.float32)
    return np.stack([row[0] * x + row[1] * y + row[2] for row in matrix.astype(np.float32)], axis=-1)


def correspondence(ours: np.ndarray, theirs: np.ndarray, width: float, shape: tuple[int, int]) -> np.ndarray:
    """For every pixel of our image, the place in theirs that shows the same part of a face.

    A similarity from five landmarks; where both faces carry equally many more, a smooth field takes up what
    the similarity leaves.

    Args:
        ours: (n, 2) landmarks in our image.
        theirs: (m, 2) landmarks in theirs.
        width: reach of a landmark in that field, in pixels.
        shape: height and width of our image.

    Returns:
        (H, W, 2) float32.
    """
    if len(ours) != len(theirs) or len(ours) == 5:
        return transformed_grid(similarity(ours[:5], theirs[:5]), shape)
    matrix = similarity(ours, theirs)
    left_over = theirs - (ours @ matrix[:, :2].T + matrix[:, 2])
    return transformed_grid(matrix, shape) + smooth_field(ours, left_over, width, shape)


def sample(image: np.ndarray, places: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Read an image at `places` (H, W, 2); beyond its edge the edge is repeated."""
    return cv2.remap(image, places, None, interpolation, borderMode=cv2.BORDER_REPLICATE)


def motion(centre: np.ndarray, degrees: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """The (2, 3) matrix that turns and scales about `centre`, then shifts by `shift` pixels."""
    matrix = cv2.getRotationMatrix2D(centre.astype(float).tolist(), degrees, scale)
    matrix[:, 2] += shift
    return matrix


def outline(face: Face, size: float) -> np.ndarray:
    """The region that a forgery replaces, as a polygon (n, 2) about its own centre.

    With more than five landmarks it is their convex hull, drawn in a little so that the edge of the face
    stays outside; with five an ellipse from brows to chin, placed by eyes and mouth; without landmarks an
    ellipse in the box, narrower than the box of a detector that gives squares. `size` scales it.
    """
    if face.landmarks is None:
        x, y, width, height = face.box
        radii = np.array([0.42 * min(width, 0.8 * height), 0.44 * height])
        return _ellipse(np.array([x + width / 2, y + height * 0.54]), np.diag(size * radii))
    if len(face.landmarks) > 5:
        hull = cv2.convexHull(face.landmarks)[:, 0]
        centre = (hull.min(0) + hull.max(0)) / 2
        return centre + HULL_SHARE * size * (hull - centre)
    left_eye, right_eye, _, left_mouth, right_mouth = face.landmarks
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    down = mouth - eyes
    # The eyes come closer when the head turns, so the height bounds the width from below.
    wide = max(float(np.linalg.norm(right_eye - left_eye) / np.linalg.norm(down)), 0.85)
    axes = np.stack([0.95 * wide * np.array([down[1], -down[0]]), 1.15 * down], axis=1)
    return _ellipse(eyes + 0.5 * down, size * axes)


def _ellipse(centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The ellipse whose half axes are the columns of `axes`, as a polygon."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) @ axes.T
