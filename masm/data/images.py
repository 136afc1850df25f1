"""Image files: decoded strictly, so that what cannot be shown as it was taken is refused with its reason."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What Pillow may decode: of the others some run programs (EPS), and none is a photograph's."""
MOST_PIXELS = 2**26
"""A larger image is taken for a decompression bomb (67 million pixels, 200 MB decoded)."""


class ImageError(ValueError):
    """An image cannot be used; the message is the reason, short enough for a table of failed frames."""


def image_files(folder: Path) -> list[Path]:
    """Every image file of a folder and the folders below it, sorted by path in C order; a dangling link is one."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir())
    return sorted(found, key=str)


def decode_image(data: bytes, max_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Decode an image file's bytes, upright by its EXIF orientation.

    Args:
        data: the file.
        max_pixels: a larger image is refused by its header, before anything is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the bytes are empty, not an image, truncated or damaged, a decompression bomb, hold more
            than one image or more than 8 bits per channel, or have the inks CMYK for colours. Pillow decodes
            because OpenCV, depending on its version, fills the missing part of a truncated JPEG with grey and
            says nothing.
    """
    if not data:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if refusal := too_large(image.width, image.height, max_pixels) or _refusal(image):
                raise ImageError(refusal)
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Image.DecompressionBombError:
        raise ImageError(_bomb(max_pixels)) from None
    except (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error) as error:
        raise ImageError(f"cannot be decoded: {error}") from None


def check_pixels(pixels: Any, max_pixels: int = MOST_PIXELS) -> np.ndarray:
    """An image that comes as numbers: an array, or nested lists of them.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it has another shape or other numbers than 0 to 255, or too many pixels.
    """
    try:
        image = np.asarray(pixels)
    except ValueError:  # rows of different lengths
        raise ImageError(_NO_PIXELS) from None
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype.kind not in "iu":
        raise ImageError(_NO_PIXELS)
    if refusal := too_large(image.shape[1], image.shape[0], max_pixels):
        raise ImageError(refusal)
    if image.min() < 0 or image.max() > 255:
        raise ImageError(_NO_PIXELS)
    return np.ascontiguousarray(image, np.uint8)


def too_large(width: int, height: int, max_pixels: int = MOST_PIXELS) -> str | None:
    """Why an image is taken for a decompression bomb, or None."""
    return _bomb(max_pixels) if width * height > max_pixels else None


def _bomb(max_pixels: int) -> str:
    return f"decompression bomb: more than {max_pixels} pixels"


_NO_PIXELS = "an array of pixels is (height, width, 3) of whole numbers from 0 to 255"


def _refusal(image: Image.Image) -> str | None:
    """Why an image's pixels would not be those of the file; only its header is read."""
    # Pillow keeps the upper byte of 16-bit colours and clips 16-bit greys, without a word.
    if image.mode.startswith(("I", "F")) or any(_is_deep(tile[3]) for tile in getattr(image, "tile", [])):
        return "more than 8 bits per channel: save it with 8"
    if image.mode == "CMYK":
        return "CMYK, whose colours depend on the printer: save it as RGB"
    # A phone's JPEG may carry a second view of the same picture (MPO).
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return "animated: more than one image in the file"
    return None


def _is_deep(arguments: str | tuple[object, ...]) -> bool:
    """Whether a part of the file is stored in more than 8 bits per channel, by what Pillow's decoder is told of it."""
    stored = arguments if isinstance(arguments, str) else next(iter(arguments), None)
    # "BGR;16" are 16 bits per pixel: 5, 6 and 5.
    return isinstance(stored, str) and "16" in stored and stored != "BGR;16"
