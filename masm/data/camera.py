"""Cameras: what a sensor, its processing and its JPEG add to a clean image. Ours, from standard models.

A real photograph carries its camera's noise; a forged region has lost or changed it. Drawn faces have none,
and photographs lose theirs when they are scaled down, so both are exposed here, before any forging.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from masm.errors import UserError

GAMMA = 2.2
_LINEAR = ((np.arange(256) / 255) ** GAMMA).astype(np.float32)
_GREEN_KERNEL = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
_RED_BLUE_KERNEL = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4


@dataclass(frozen=True)
class Camera:
    """A camera's model.

    Attributes:
        name: as in `CAMERAS`.
        blur: lens blur, Gaussian sigma in pixels.
        shot_noise, read_noise: variance of the sensor's noise at linear light x in [0, 1] is
            shot_noise * x + read_noise**2, per pixel of the Bayer mosaic.
        grain: Gaussian sigma in pixels by which the camera's processing smooths its noise; 0 = not at all.
        sharpening: weight of the unsharp mask (sigma 1 pixel) that the camera applies after gamma.
        quality: lowest and highest JPEG quality.
    """

    name: str
    blur: float
    shot_noise: float
    read_noise: float
    grain: float
    sharpening: float
    quality: tuple[int, int]

    def scaled(self, noise: float) -> Camera:
        """The same camera with `noise` times the standard deviation of noise, as at another sensitivity."""
        return replace(self, shot_noise=noise**2 * self.shot_noise, read_noise=noise * self.read_noise)


CAMERAS = {
    camera.name: camera
    for camera in (
        Camera("compact", 0.4, 1.4e-3, 0.004, grain=0.0, sharpening=0.0, quality=(90, 97)),
        Camera("phone", 0.55, 2.0e-3, 0.006, grain=0.5, sharpening=0.6, quality=(85, 95)),
    )
}


def expose(image: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """The image as the camera records it, before its JPEG.

    Lens blur, then sensor noise in linear light, then gamma and sharpening. The noise is Poisson-Gaussian in
    its normal approximation (Foi et al., "Practical Poissonian-Gaussian noise modeling and fitting for
    single-image raw-data", IEEE TIP 2008), drawn once per pixel of an RGGB Bayer mosaic and interpolated
    bilinearly, as demosaicing does, which correlates it between neighbours.

    Args:
        image: (H, W, 3) uint8 RGB, taken as gamma-encoded radiance.
        camera: what to simulate.
        rng: source of the noise.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    light = _LINEAR[image]
    if camera.blur > 0:
        light = cv2.GaussianBlur(light, (0, 0), camera.blur)
    light = light + sensor_noise(light, camera, rng)
    encoded = 255 * np.clip(light, 0, 1) ** np.float32(1 / GAMMA)
    if camera.sharpening > 0:
        encoded += np.float32(camera.sharpening) * (encoded - cv2.GaussianBlur(encoded, (0, 0), 1.0))
    return np.clip(np.round(encoded), 0, 255).astype(np.uint8)


def sensor_noise(light: np.ndarray, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Demosaiced noise (H, W, 3) float32 with zero mean for linear light (H, W, 3) in [0, 1]."""
    height, width, _ = light.shape
    mosaic = np.zeros((height, width, 3), np.float32)
    raw = rng.standard_normal((height, width), np.float32)
    for channel, rows, columns in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):  # RGGB
        site = slice(rows, None, 2), slice(columns, None, 2)
        variance = camera.shot_noise * light[(*site, channel)] + camera.read_noise**2
        mosaic[(*site, channel)] = raw[site] * np.sqrt(variance)
    for channel, kernel in enumerate((_RED_BLUE_KERNEL, _GREEN_KERNEL, _RED_BLUE_KERNEL)):
        plane = mosaic[..., channel]
        mosaic[..., channel] = cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return cv2.GaussianBlur(mosaic, (0, 0), camera.grain) if camera.grain > 0 else mosaic


def compress(image: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of an RGB image (H, W, 3) uint8 at `quality` 1..100, chroma 4:2:0 as cameras write it."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality,
               cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]  # fmt: skip
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def decompress(data: bytes) -> np.ndarray:
    """The RGB image (H, W, 3) uint8 of encoded bytes; UserError where they are no image."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise UserError(f"{len(data)} bytes do not decode as an image: replace the damaged file.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
