"""Real video files for the tests, written with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from masm.data.images import decode_image

BITS = 8


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    faststart: bool = False,
    fragmented: bool = False,
    **options: str,
) -> Path:
    """Encode (H, W, 3) uint8 RGB frames, 25 each second or at `times` in ms; `options` are the encoder's."""
    flags = {"movflags": "faststart"} if faststart else {}
    flags |= {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=25)
        stream.options = options
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.time_base = Fraction(1, 25) if times is None else Fraction(1, 1000)
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered(count: int, height: int = 96, width: int = 160) -> Iterable[np.ndarray]:
    """Frames that carry their number as bars above noise that moves."""
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 60, (height, width, 3)).astype(np.uint8)
        for bit in range(BITS):
            image[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255 * ((number >> bit) & 1)
        yield image


def number_in(image: np.ndarray) -> int:
    """The number that a frame of `numbered` carries."""
    height, width = image.shape[:2]
    bars = image[height // 8 : 3 * height // 8].mean(axis=(0, 2)).reshape(BITS, width // BITS)
    return sum(1 << bit for bit in range(BITS) if bars[bit, 4:-4].mean() > 127)


def decode_all(path: Path) -> list[np.ndarray]:
    """Every frame, in the order in which they are shown, by decoding all of the file."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def turn_by_metadata(path: Path, target: Path) -> Path:
    """Write a phone's note into an MP4 file that its pictures are to be shown turned clockwise by 90 degrees.

    The matrix of the track's header `tkhd` (ISO/IEC 14496-12): x' = a x + c y, y' = b x + d y, with y down.
    """
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # version 0
    assert struct.unpack_from(">9i", data, matrix) == (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    struct.pack_into(">9i", data, matrix, 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    target.write_bytes(data)
    return target


def people(shared: Path, count: int) -> list[np.ndarray]:
    """Photographs (320, 320, 3) of different people, whose faces are about 100 x 150 pixels."""
    files = sorted((shared / "faces" / "london").glob("*_03.jpg"))[:count]
    return [cv2.resize(decode_image(file.read_bytes()), (320, 320), interpolation=cv2.INTER_AREA) for file in files]


def scene(places: dict[tuple[int, int], np.ndarray], height: int = 320, width: int = 640) -> np.ndarray:
    """A grey room with pictures at (x, y)."""
    image = np.full((height, width, 3), 120, np.uint8)
    for (x, y), picture in places.items():
        image[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return image
