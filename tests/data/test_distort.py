from __future__ import annotations

import io
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image

from masm.data.distort import LEVELS, distort, distort_video, value_of
from masm.errors import UserError
from masm.settings import Distortion

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (40, 50, 3), np.uint8)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (240, 240, 3), np.uint8), (0, 0), 6)
TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # BT.601
IMAGE_KINDS = [kind for kind in LEVELS if kind != "h264"]


def test_settings_offer_every_kind() -> None:
    assert get_args(Distortion) == tuple(LEVELS)


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255)


def test_the_levels_are_those_of_the_protocol() -> None:
    assert LEVELS["saturation"] == (0.4, 0.3, 0.2, 0.1, 0)
    assert LEVELS["contrast"] == (0.85, 0.725, 0.6, 0.475, 0.35)
    assert LEVELS["blocks"] == (16, 32, 48, 64, 80)
    assert LEVELS["noise"] == (0.001, 0.002, 0.005, 0.01, 0.05)
    assert LEVELS["blur"] == (7, 9, 13, 17, 21)
    assert LEVELS["pixelation"] == (2, 3, 4, 5, 6)
    assert LEVELS["h264"] == (30, 32, 35, 38, 40)
    assert LEVELS["jpeg"] == (100, 80, 60, 40, 20, 10)
    assert LEVELS["resize"] == (224, 112, 64)
    assert value_of("blur", 1) == 7


@pytest.mark.parametrize("level", [1, 3, 5])
def test_saturation_is_a_factor_on_the_chroma(level: int) -> None:
    ycbcr = NOISE @ TO_YCBCR.T * [1, LEVELS["saturation"][level - 1], LEVELS["saturation"][level - 1]]
    expected = rounded(ycbcr @ np.linalg.inv(TO_YCBCR).T)
    np.testing.assert_allclose(distort(NOISE, "saturation", level, 0, "a"), expected, atol=1)
    if level == 5:
        assert np.ptp(distort(NOISE, "saturation", 5, 0, "a"), axis=-1).max() == 0  # grey


def test_contrast_is_a_factor_on_the_values() -> None:
    assert (distort(NOISE, "contrast", 2, 0, "a") == rounded(0.725 * NOISE.astype(float))).all()


@pytest.mark.parametrize(
    ("side", "blocks", "block"), [(256, 16, 8), (300, 16, 8), (600, 32, 8), (128, 16, 4), (64, 16, 2)]
)
def test_blocks_are_as_many_and_as_large_as_they_should(side: int, blocks: int, block: int) -> None:
    """From 256 px on by the paper's rule; below it the same share of the image is hidden."""
    image = np.full((side, side + 30, 3), 7, np.uint8)
    hidden = []
    for sample in range(30):
        distorted = distort(image, "blocks", 1, 0, str(sample))
        grey = (distorted == 128).all(axis=-1)
        assert (distorted[~grey] == 7).all()
        assert grey.sum() <= blocks * block**2
        in_squares = np.zeros_like(grey)  # every grey pixel belongs to a whole square
        for top, left in np.argwhere(np.lib.stride_tricks.sliding_window_view(grey, (block, block)).all(axis=(2, 3))):
            in_squares[top : top + block, left : left + block] = True
        assert (in_squares == grey).all()
        hidden.append(grey.sum())
    assert max(hidden) > 0.9 * blocks * block**2  # some sample without many overlaps
    assert image.max() == 7


@pytest.mark.parametrize("level", [1, 2, 3])
def test_noise_has_its_variance_in_ycbcr(level: int) -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    noise = (distort(grey, "noise", level, 0, "a") - 128.0) @ TO_YCBCR.T / 255
    studio = noise * [219 / 255, 224 / 255, 224 / 255]  # 8-bit YCbCr has fewer steps than 8-bit RGB
    np.testing.assert_allclose(studio.reshape(-1, 3).var(axis=0), LEVELS["noise"][level - 1], rtol=0.03)
    assert abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02
    assert abs(noise.mean()) < 1e-3


@pytest.mark.parametrize("level", [1, 5])
def test_blur_is_a_gaussian_of_a_sixth_of_its_kernel(level: int) -> None:
    size = int(LEVELS["blur"][level - 1])
    taps = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 6) ** 2))
    taps /= taps.sum()
    padded = np.pad(NOISE.astype(float), ((size // 2,) * 2, (size // 2,) * 2, (0, 0)), mode="reflect")
    rows = sum(weight * padded[i : i + 40] for i, weight in enumerate(taps))
    expected = sum(weight * rows[:, i : i + 50] for i, weight in enumerate(taps))
    off = abs(distort(NOISE, "blur", level, 0, "a") - expected)
    assert off.max() < 2  # OpenCV's weights have 8 bits
    assert off.mean() < 0.4


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Float64 interpolation between the centres of pixels, edges repeated."""
    for axis, size in ((0, height), (1, width)):
        place = np.clip((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5, 0, image.shape[axis] - 1)
        low = np.floor(place).astype(int)
        share = (place - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        high = np.minimum(low + 1, image.shape[axis] - 1)
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


@pytest.mark.parametrize("level", [1, 2, 5])
def test_pixelation_shrinks_and_enlarges(level: int) -> None:
    factor = level + 1
    small = rounded(bilinear(NOISE.astype(float), 40 // factor, 50 // factor))
    expected = bilinear(small, 40, 50)
    np.testing.assert_allclose(distort(NOISE, "pixelation", level, 0, "a"), expected, atol=2)  # OpenCV rounds twice


def test_jpeg_is_that_of_another_encoder() -> None:
    for level, quality in enumerate(LEVELS["jpeg"], 1):
        file = io.BytesIO()
        Image.fromarray(SMOOTH).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
        expected = np.asarray(Image.open(file)).astype(int)
        assert abs(distort(SMOOTH, "jpeg", level, 0, "a") - expected).mean() < 0.5


def test_resize_averages_areas_and_leaves_small_images_alone() -> None:
    image = cv2.resize(SMOOTH, (256, 128))
    small = image.reshape(64, 2, 128, 2, 3).mean(axis=(1, 3))
    expected = bilinear(rounded(small), 128, 256)
    np.testing.assert_allclose(distort(image, "resize", 3, 0, "a"), expected, atol=2)
    assert (distort(image, "resize", 1, 0, "a") == image).all()


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_every_level_goes_further_and_is_repeatable(kind: str) -> None:
    away = []
    for level in range(1, len(LEVELS[kind]) + 1):
        before = SMOOTH.copy()
        distorted = distort(SMOOTH, kind, level, 3, "a")
        assert (before == SMOOTH).all()
        assert distorted.shape == SMOOTH.shape
        assert distorted.dtype == np.uint8
        assert (distorted == distort(SMOOTH, kind, level, 3, "a")).all()
        away.append(abs(distorted.astype(int) - SMOOTH).mean())
    further = 2 if kind == "pixelation" else 1  # odd factors take pixels as they are, even ones average four
    assert all(one < other for one, other in zip(away, away[further:], strict=False))


@pytest.mark.parametrize("kind", ["noise", "blocks"])
def test_chance_depends_on_seed_sample_kind_and_level(kind: str) -> None:
    images = [distort(SMOOTH, kind, 1, seed, sample) for seed, sample in [(3, "a"), (4, "a"), (3, "b")]]
    assert (images[0] != images[1]).any()
    assert (images[0] != images[2]).any()
    frames = distort_video([SMOOTH, SMOOTH], kind, 1, 3, "a")
    assert (frames[0] != frames[1]).any()
    assert (frames[1] == distort(SMOOTH, kind, 1, 3, "a/1")).all()


def test_h264_costs_more_with_every_level_and_keeps_the_frames() -> None:
    pytest.importorskip("av")
    frames = [np.roll(SMOOTH[:101, :99], 3 * shift, axis=1) for shift in range(12)]
    away = []
    for level in (1, 2, 3, 4, 5):
        distorted = distort_video(frames, "h264", level, 0, "a")
        assert [frame.shape for frame in distorted] == [frame.shape for frame in frames]
        again = distort_video(frames, "h264", level, 1, "b")
        assert all((one == other).all() for one, other in zip(distorted, again, strict=True))
        away.append(np.mean([abs(one.astype(int) - two).mean() for one, two in zip(distorted, frames, strict=True)]))
    assert away[0] < away[2] < away[4] < 10


def test_unknown_kinds_and_levels() -> None:
    with pytest.raises(UserError, match="there is no distortion 'fog': use one of saturation, "):
        distort(NOISE, "fog", 1, 0, "a")
    with pytest.raises(UserError, match="'blur' has levels 1 to 5, not 6"):
        distort_video([NOISE], "blur", 6, 0, "a")
    with pytest.raises(UserError, match="'blur' has levels 1 to 5, not 0"):
        distort(NOISE, "blur", 0, 0, "a")
    with pytest.raises(UserError, match="'h264' is of videos"):
        distort(NOISE, "h264", 1, 0, "a")
