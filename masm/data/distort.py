"""The robustness set: what befalls an image or a video on its way to the detector, in fixed levels, seeded.

Kinds and levels are those of DeeperForensics-1.0 (CVPR 2020), applied to real and fake alike, and two ladders besides:
JPEG quality and size. Values are rounded to the nearest, where that benchmark's code cuts them off.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from masm.data.camera import compress, decompress
from masm.errors import UserError

LEVELS: dict[str, tuple[float, ...]] = {
    "saturation": (0.4, 0.3, 0.2, 0.1, 0.0),  # factor on the chroma
    "contrast": (0.85, 0.725, 0.6, 0.475, 0.35),  # factor on the values
    "blocks": (16, 32, 48, 64, 80),  # grey squares
    "noise": (0.001, 0.002, 0.005, 0.01, 0.05),  # variance in YCbCr, whose 8 bits are 0..1
    "blur": (7, 9, 13, 17, 21),  # side of the Gaussian kernel, px; its sigma is a sixth of that
    "pixelation": (2, 3, 4, 5, 6),  # factor by which the image is shrunk, and enlarged again; "JPEG" in the paper
    "h264": (30, 32, 35, 38, 40),  # constant rate factor; of videos alone
    "jpeg": (100, 80, 60, 40, 20, 10),  # quality
    "resize": (224, 112, 64),  # shorter side to which the image is shrunk, px, and enlarged again
}
"""What each level of a kind is, from level 1 on."""

CLEAN = "none"
"""What stands in place of a kind for images as they are, whose level is 0."""
BLOCK_SIDE = 8
BLOCK_IMAGE_SIDE = 256
GREY = 128


def distort(image: np.ndarray, kind: str, level: int, seed: int, sample: str) -> np.ndarray:
    """An image distorted; what chance there is depends on (seed, sample, kind, level) alone.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        kind: one of `LEVELS` but h264.
        level: from 1 on.
        seed: of the whole set.
        sample: the image's name.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        UserError: there is no such kind or level, or it is of videos alone.
    """
    value = value_of(kind, level)
    if kind == "h264":
        raise UserError("distortion 'h264' is of videos: give the frames to distort_video.")
    names = (sample, kind)
    rng = np.random.default_rng((seed, *(zlib.crc32(name.encode()) for name in names), level))
    return _IMAGE_KINDS[kind](image, value, rng)


def distort_video(
    frames: Sequence[np.ndarray], kind: str, level: int, seed: int, sample: str, rate: int = 25
) -> list[np.ndarray]:
    """A video distorted: frame by frame, each with chance of its own, but h264, which sees it whole.

    Args:
        frames: (H, W, 3) uint8 RGB, all of one size.
        kind: one of `LEVELS`.
        level: from 1 on.
        seed: of the whole set.
        sample: the video's name.
        rate: frames per second; of h264.

    Raises:
        UserError: there is no such kind or level, or PyAV is missing.
    """
    value = value_of(kind, level)
    if kind == "h264":
        return _h264(frames, int(value), rate)
    return [distort(frame, kind, level, seed, f"{sample}/{number}") for number, frame in enumerate(frames)]


def value_of(kind: str, level: int) -> float:
    """What a level of a kind is.

    Raises:
        UserError: there is no such kind or level.
    """
    if kind not in LEVELS:
        raise UserError(f"there is no distortion {kind!r}: use one of {', '.join(LEVELS)}.")
    if not 1 <= level <= len(LEVELS[kind]):
        raise UserError(f"distortion {kind!r} has levels 1 to {len(LEVELS[kind])}, not {level}.")
    return LEVELS[kind][level - 1]


def _saturation(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Every pixel moved towards its luma (BT.601): the same as a factor on Cb and Cr."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return _bytes(luma[..., None] + factor * (image - luma[..., None]))


def _contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return _bytes(factor * image.astype(np.float64))


def _blocks(image: np.ndarray, blocks: float, rng: np.random.Generator) -> np.ndarray:
    """(shorter side // 256) x `blocks` grey squares of 8 x 8 px, anywhere.

    By that rule images under 256 px would get none. Ours: they get `blocks` squares, as much smaller than 8 px as
    the image is than 256, so that the same share of it is hidden.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    side = BLOCK_SIDE if shorter >= BLOCK_IMAGE_SIDE else max(1, round(BLOCK_SIDE * shorter / BLOCK_IMAGE_SIDE))
    distorted = image.copy()
    for _ in range(max(1, shorter // BLOCK_IMAGE_SIDE) * int(blocks)):
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        distorted[top : top + side, left : left + side] = GREY
    return distorted


def _noise(image: np.ndarray, variance: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise in 8-bit YCbCr of BT.601, whose luma has 219 steps and whose chroma has 224."""
    noise = np.sqrt(variance) * 255 * rng.standard_normal(image.shape)
    y, cb, cr = np.moveaxis(noise, -1, 0) * np.array([255 / 219, 255 / 224, 255 / 224])[:, None, None]
    # The way back to RGB is linear: the noise can go it alone.
    added = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return _bytes(image + added)


def _blur(image: np.ndarray, kernel: float, rng: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(image, (int(kernel), int(kernel)), kernel / 6)


def _pixelation(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, width // int(factor)), max(1, height // int(factor))))
    return cv2.resize(small, (width, height))


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    return decompress(compress(image, int(quality)))


def _resize(image: np.ndarray, shorter: float, rng: np.random.Generator) -> np.ndarray:
    """Shrunk by averaging areas and enlarged bilinearly; an image that is no larger stays as it is."""
    height, width = image.shape[:2]
    scale = shorter / min(height, width)
    if scale >= 1:
        return image.copy()
    small = cv2.resize(image, (round(scale * width), round(scale * height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height))


def _h264(frames: Sequence[np.ndarray], factor: int, rate: int) -> list[np.ndarray]:
    """The frames encoded by x264 (4:2:0, this constant rate factor, else its defaults), and decoded.

    One thread and plain C make it repeatable: with x264's vector code, two encodings of the same frames differ.
    """
    try:
        import av  # of the extra `video`
    except ImportError:
        raise UserError("distortion 'h264' needs PyAV: install masm with the extra `video`.") from None
    height, width = frames[0].shape[:2]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"crf": str(factor), "x264-params": "threads=1:asm=0"}
        )
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for frame in frames:  # 4:2:0 needs even sides
            even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as written:
        return [frame.to_ndarray(format="rgb24")[:height, :width] for frame in written.decode(video=0)]


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


_IMAGE_KINDS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "saturation": _saturation,
    "contrast": _contrast,
    "blocks": _blocks,
    "noise": _noise,
    "blur": _blur,
    "pixelation": _pixelation,
    "jpeg": _jpeg,
    "resize": _resize,
}
