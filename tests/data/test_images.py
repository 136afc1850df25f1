"""Image files of every kind that users have, good and bad."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from masm.data.images import MOST_PIXELS, ImageError, check_pixels, decode_image


@pytest.fixture
def image() -> np.ndarray:
    """A ramp in x and y with noise in the third channel."""
    y, x = np.indices((120, 160))
    noise = np.random.default_rng(0).integers(0, 256, (120, 160))
    return np.stack([x, y, noise], axis=2).astype(np.uint8)


def encode(image: np.ndarray, kind: str, **options: int | str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_reads_what_was_written(image: np.ndarray, kind: str) -> None:
    ramp = np.repeat(image[:, :, :1], 3, axis=2)
    found = decode_image(encode(ramp, kind))
    assert found.shape == ramp.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - ramp).mean() < 3


def test_grey_and_turned_images_become_upright_rgb(image: np.ndarray) -> None:
    grey = decode_image(encode(image[:, :, 0], "PNG"))
    np.testing.assert_array_equal(grey, np.repeat(image[:, :, :1], 3, axis=2))
    turned = Image.fromarray(image)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    stream = io.BytesIO()
    turned.save(stream, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(stream.getvalue()), np.rot90(image, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(image: np.ndarray, kind: str, share: float) -> None:
    data = encode(image, kind)
    with pytest.raises(ImageError):
        decode_image(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "empty file"),
        (lambda data: b"<html>not found</html>", "not an image"),
        (lambda data: data[: len(data) // 2], "truncated"),
    ],
)
def test_damage_is_named(image: np.ndarray, damage: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_image(damage(encode(image, "JPEG")))


def test_a_flipped_byte_in_a_png(image: np.ndarray) -> None:
    data = bytearray(encode(image, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError):
        decode_image(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_refused_rather_than_cut(kind: str, channels: int) -> None:
    deep = np.full((8, 8, channels), 40_000, np.uint16)
    data = cv2.imencode(f".{kind.lower()}", deep)[1].tobytes()
    with pytest.raises(ImageError, match="more than 8 bits"):
        decode_image(data)


@pytest.mark.parametrize(("kind", "options"), [("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {})])
def test_eight_bits_are_read_at_every_width(kind: str, options: dict[str, str]) -> None:
    """A row of 160 pixels has 480 bytes, one of 256 has 768, and one of 540 has 1620: none is a depth of 16."""
    for width in range(40, 561, 4):
        pixels = np.random.default_rng(width).integers(0, 256, (2, width, 3)).astype(np.uint8)
        np.testing.assert_array_equal(decode_image(encode(pixels, kind, **options)), pixels)


def test_a_bitmap_of_sixteen_bits_per_pixel_has_less_than_eight_per_channel() -> None:
    header = struct.pack("<2sIII", b"BM", 14 + 40 + 12 + 4, 0, 14 + 40 + 12)
    header += struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks, pixels = struct.pack("<III", 0xF800, 0x07E0, 0x001F), struct.pack("<HH", 0xF800, 0x07E0)
    assert decode_image(header + masks + pixels).tolist() == [[[255, 0, 0], [0, 255, 0]]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_refused_rather_than_guessed(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16), (10, 200, 30, 40)).save(stream, kind)
    with pytest.raises(ImageError, match="CMYK"):
        decode_image(stream.getvalue())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animated_image_is_refused_and_a_still_one_of_its_kind_read(image: np.ndarray, kind: str) -> None:
    first, second = Image.fromarray(image), Image.fromarray(255 - image)
    stream = io.BytesIO()
    first.save(stream, kind, save_all=True, append_images=[second])
    with pytest.raises(ImageError, match="animated"):
        decode_image(stream.getvalue())
    assert decode_image(encode(image, kind)).shape == image.shape


def test_a_phones_second_view_does_not_make_an_animation(image: np.ndarray) -> None:
    ramp = np.repeat(image[:, :, :1], 3, axis=2)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "MPO", save_all=True, append_images=[Image.fromarray(255 - ramp)])
    assert np.abs(decode_image(stream.getvalue()).astype(int) - ramp).mean() < 3


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICNS"])
def test_formats_of_no_photograph_are_not_opened(image: np.ndarray, kind: str) -> None:
    """Pillow gives an EPS to Ghostscript, which runs the program that it is."""
    with pytest.raises(ImageError, match="not an image"):
        decode_image(encode(image, kind))


def test_pixels_are_taken_as_they_are(image: np.ndarray) -> None:
    for pixels in (image, image.tolist(), image.astype(np.int64), np.asfortranarray(image)):
        checked = check_pixels(pixels)
        np.testing.assert_array_equal(checked, image)
        assert checked.dtype == np.uint8
        assert checked.flags.c_contiguous


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.full((8, 8, 3), 256),
        np.full((8, 8, 3), -1),
        np.zeros((0, 8, 3), np.uint8),
        [[[1, 2, 3], [1, 2]]],
        [[["a", "b", "c"]]],
        [],
        "text",
        None,
    ],
)
def test_other_arrays_are_no_image(pixels: object) -> None:
    with pytest.raises(ImageError, match="an array of pixels is"):
        check_pixels(pixels)


def test_too_many_pixels_are_refused(image: np.ndarray) -> None:
    pixels = image.shape[0] * image.shape[1]
    for check, given in ((decode_image, encode(image, "PNG")), (check_pixels, image)):
        assert check(given, pixels).shape == image.shape
        with pytest.raises(ImageError, match=f"decompression bomb: more than {pixels - 1} pixels"):
            check(given, pixels - 1)


@pytest.mark.parametrize("side", [8193, 30_000])  # below and above what Pillow opens at all
def test_a_decompression_bomb_is_not_unpacked(side: int) -> None:
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    assert len(stream.getvalue()) < 200_000
    with pytest.raises(ImageError, match=f"decompression bomb: more than {MOST_PIXELS} pixels"):
        decode_image(stream.getvalue())


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says about damaged TIFFs
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_whatever_the_damage_there_is_a_reason_or_an_image(image: np.ndarray, kind: str) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(encode(image[:40, :40], kind), np.uint8)
    refused = 0
    for _ in range(200):
        damaged = data.copy()
        places = rng.integers(0, min(len(data), 400), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        try:
            assert decode_image(damaged.tobytes()).dtype == np.uint8
        except ImageError:
            refused += 1
    assert refused > 4
