"""The cameras' noise against its formula, and JPEG."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from masm.data.camera import CAMERAS, GAMMA, Camera, compress, decompress, expose, sensor_noise
from masm.errors import UserError

PLAIN = Camera("plain", blur=0.0, shot_noise=1.5e-3, read_noise=0.006, grain=0.0, sharpening=0.0, quality=(90, 95))
# A bilinear interpolation averages 1, 2 or 4 samples, at 1/4, 1/2, 1/4 of the sites (red, blue) or 1/2, 0, 1/2.
VARIANCE_KEPT = np.array([1 / 4 + 1 / 2 / 2 + 1 / 4 / 4, 1 / 2 + 1 / 2 / 4, 1 / 4 + 1 / 2 / 2 + 1 / 4 / 4])


def flat(level: int, size: int = 256) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


@pytest.mark.parametrize("light", [0.02, 0.2, 0.8])
def test_variance_follows_shot_and_read_noise(light: float) -> None:
    noise = sensor_noise(np.full((512, 512, 3), light, np.float32), PLAIN, np.random.default_rng(0))
    expected = (PLAIN.shot_noise * light + PLAIN.read_noise**2) * VARIANCE_KEPT
    assert noise.astype(float).var(axis=(0, 1)) == pytest.approx(expected, rel=0.03)
    assert np.abs(noise.mean(axis=(0, 1))).max() < 5 * np.sqrt(expected.max()) / 256


@pytest.mark.parametrize("level", [70, 128, 200])
def test_exposed_noise_follows_the_formula_through_gamma(level: int) -> None:
    exposed = expose(flat(level), PLAIN, np.random.default_rng(1)).astype(float)
    light = (level / 255) ** GAMMA
    slope = 255 / GAMMA * light ** (1 / GAMMA - 1)
    expected = slope**2 * (PLAIN.shot_noise * light + PLAIN.read_noise**2) * VARIANCE_KEPT + 1 / 12
    assert exposed.var(axis=(0, 1)) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("level", [80, 128, 200])
def test_mean_is_preserved_and_noise_is_visible(name: str, level: int) -> None:
    exposed = expose(flat(level), CAMERAS[name], np.random.default_rng(2)).astype(float)
    assert exposed.mean(axis=(0, 1)) == pytest.approx(level, abs=0.3)
    assert (exposed.std(axis=(0, 1)) > 2).all()
    assert (exposed.std(axis=(0, 1)) < 7).all()


def test_demosaicing_correlates_neighbours_but_not_distant_pixels() -> None:
    noise = sensor_noise(np.full((512, 512, 3), 0.3, np.float32), PLAIN, np.random.default_rng(3))
    red = noise[..., 0].astype(float)
    near, far = (np.corrcoef(red[:, :-shift].ravel(), red[:, shift:].ravel())[0, 1] for shift in (1, 4))
    assert near > 0.5
    assert abs(far) < 0.02


def test_cameras_differ_in_grain() -> None:
    def neighbours(camera: Camera) -> float:
        noise = expose(flat(128), replace(camera, sharpening=0.0), np.random.default_rng(4))[..., 1].astype(float)
        return float(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1])

    assert neighbours(CAMERAS["phone"]) > neighbours(CAMERAS["compact"]) + 0.05


def test_same_generator_gives_the_same_exposure() -> None:
    image = np.random.default_rng(0).integers(0, 256, (65, 47, 3), dtype=np.uint8)  # odd sides
    first, again, other = (expose(image, CAMERAS["phone"], np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first.shape == image.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sharpening_steepens_edges() -> None:
    image = flat(60, 32)
    image[:, 16:] = 180
    quiet = replace(PLAIN, shot_noise=0.0, read_noise=0.0)
    soft = expose(image, quiet, np.random.default_rng(0)).astype(int)
    sharp = expose(image, replace(quiet, sharpening=0.8), np.random.default_rng(0)).astype(int)
    assert np.array_equal(soft, image)  # neither blur nor noise
    assert np.ptp(sharp) > np.ptp(soft)


@pytest.mark.parametrize("name", CAMERAS)
def test_noise_survives_the_cameras_jpeg(name: str) -> None:
    camera = CAMERAS[name]
    exposed = expose(flat(128), camera, np.random.default_rng(7))
    published = decompress(compress(exposed, camera.quality[0]))
    assert published[..., 1].std() > 0.5 * exposed[..., 1].std()


def test_jpeg_round_trip_keeps_colours_and_order_of_channels() -> None:
    ramp = np.linspace(40, 200, 64).astype(np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(90)), axis=-1)
    restored = decompress(compress(image, 95))
    assert restored.shape == image.shape
    assert np.abs(restored.astype(int) - image).mean() < 2
    assert len(compress(image, 60)) < len(compress(image, 95))


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_damaged_bytes_are_the_users_error(data: bytes) -> None:
    with pytest.raises(UserError, match="do not decode"):
        decompress(data)
