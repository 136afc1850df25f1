"""Five-point alignment: turn, scale and shift a face so that its landmarks come where they are in the mean face."""

from __future__ import annotations

import cv2
import numpy as np

from masm.data.images import ImageError

TEMPLATE = np.array([[-0.167, -0.126], [0.167, -0.126], [0.0, 0.067], [-0.141, 0.229], [0.141, 0.229]])
"""The mean face, ours: where YuNet sees eyes, nose tip and corners of the mouth, from the centre of its box and
over the box's longer side; the mean of 102 frontal photographs of people with a neutral face, made symmetrical. An
aligned crop so has about the content of the plain square with the same margin."""


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift that brings points nearest to others in the sense of least squares.

    Umeyama 1991, Eqs. 40 to 42, without reflection; in the plane that is one complex factor.

    Args:
        source, target: (n, 2), n >= 2.

    Returns:
        (2, 3) float64: target = [:, :2] @ source + [:, 2].

    Raises:
        ImageError: the points are not finite, or all of them are one.
    """
    here, there = (np.asarray(points, np.float64) @ [1, 1j] for points in (source, target))
    centred = here - here.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.vdot(centred, there) / np.vdot(centred, centred).real
    if not np.isfinite(factor) or factor == 0:
        raise ImageError("landmarks that are no face: they cannot be aligned")
    shift = there.mean() - factor * here.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def transform(landmarks: np.ndarray, centre: tuple[float, float], side: float, size: int) -> np.ndarray:
    """Where the pixels of the square that `align` cuts out, which takes the same, lie in the image: (2, 3) float64.

    Raises:
        ImageError: the landmarks are no face.
    """
    to_image = similarity(TEMPLATE, landmarks[:5])
    # From the result's pixels to the template, and on to the image's.
    to_image[:, 2] += to_image[:, :2] @ (np.asarray(centre) - side / 2)
    to_image[:, :2] *= side / size
    return to_image


def align(image: np.ndarray, landmarks: np.ndarray, centre: tuple[float, float], side: float, size: int) -> np.ndarray:
    """Cut a square out of the aligned face.

    A larger face is first scaled down by the mean over areas, as a plain crop is, then turned. Where the square
    leaves the image, the edge pixels are repeated.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        landmarks: (n >= 5, 2) pixels; the first five as in `masm.data.faces.Face`.
        centre: of the square, in units of `TEMPLATE`.
        side: of the square, in units of `TEMPLATE`.
        size: side of the result in pixels.

    Returns:
        (size, size[, 3]) uint8.

    Raises:
        ImageError: the landmarks are no face, or the square lies outside the image.
    """
    to_image = transform(landmarks, centre, side, size)
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ to_image[:, :2].T + to_image[:, 2]
    shrink = min(1.0, 1 / float(np.hypot(*to_image[:, 0])))
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (low >= image.shape[1::-1]).any() or (high <= 0).any():
        raise ImageError(f"the aligned face lies outside the {image.shape[1]} x {image.shape[0]} image")
    reach = 4 / shrink  # what interpolation looks at beyond the corners
    origin = np.floor(np.maximum(low - reach, 0)).astype(int)
    end = np.ceil(np.minimum(high + reach, image.shape[1::-1])).astype(int)
    region = image[origin[1] : end[1], origin[0] : end[0]]
    shape = np.maximum(np.rint((end - origin) * shrink), 1).astype(int)
    if shrink < 1:
        region = cv2.resize(region, shape.tolist(), interpolation=cv2.INTER_AREA)
    to_region = (to_image - np.column_stack([np.zeros((2, 2)), origin])) * (shape / (end - origin))[:, None]
    # OpenCV counts from the centre of the first pixel, we from its edge.
    to_region[:, 2] += to_region[:, :2] @ (0.5, 0.5) - 0.5
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(region, to_region, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
