"""Frames of a clip, by their numbers: of a video file through PyAV, or of a folder of pictures.

A video's frames are numbered in the order in which they are shown, whatever their times: its packets are read
once without decoding, which is quick, and their times say how many frames there are, which of them begin anew
(key frames), and when each is shown. A frame is then decoded from the key frame before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from masm.data.images import IMAGE_SUFFIXES, ImageError, decode_image
from masm.data.importers.photograph import Unusable
from masm.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


class Frames(Protocol):
    """The numbered frames of a clip."""

    numbers: Sequence[int]
    """In the order in which they are shown, rising."""

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """Decode frames, one in memory at a time.

        Args:
            numbers: some of the clip's, rising.

        Yields:
            Each number with (H, W, 3) uint8 RGB, upright, or with the reason why there is none.
        """

    def close(self) -> None:
        """Let go of the file."""


def open_frames(files: Sequence[Path]) -> Frames:
    """The frames of one video file, or of pictures in frame order.

    Raises:
        Unusable: the video is unreadable.
        UserError: a video, and PyAV is not installed.
    """
    if len(files) == 1 and files[0].suffix.lower() not in IMAGE_SUFFIXES:
        return Video(files[0])
    return Pictures(files)


def spread(length: int, count: int | None) -> list[int]:
    """`count` of `length` places, evenly over all of them: the middles of equal parts. All where there are fewer."""
    if count is None or count >= length:
        return list(range(length))
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


class Pictures:
    """Frames that are image files; where their names end in rising numbers, these are the frames' numbers."""

    def __init__(self, files: Sequence[Path]) -> None:
        named = [int(end.group()) for file in files if (end := re.search(r"[0-9]+$", file.stem))]
        rising = len(named) == len(files) and all(first < second for first, second in pairwise(named))
        self.numbers: Sequence[int] = named if rising else range(len(files))
        self._files = dict(zip(self.numbers, files, strict=True))

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """See `Frames`."""
        for number in numbers:
            file = self._files[number]
            try:
                yield number, decode_image(file.read_bytes())
            except ImageError as error:
                yield number, ImageError(f"{file.name}: {error}")
            except OSError as error:
                yield number, ImageError(f"{file.name}: {error.strerror}")

    def close(self) -> None:
        """Nothing stays open."""


class Video:
    """The frames of a video file.

    Where the container counts more frames than are in the file, as after a broken download, those that are
    missing have numbers too.

    Raises:
        Unusable: nothing of the file can be read.
        UserError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._av = _pyav()
        self._container = self._open(path)
        try:
            self._stream = self._choose_stream()
            counted = self._read_times()
        except Unusable:
            self.close()
            raise
        self.numbers: Sequence[int] = range(max(counted, len(self._times)))

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """See `Frames`; it seeks where a key frame lies between two of the numbers."""
        frames: Iterator[VideoFrame] = iter(())
        frame: VideoFrame | None = None
        for number in numbers:
            if number >= len(self._times):
                there = f"{len(self._times)} of its {len(self.numbers)} frames"
                yield number, ImageError(f"the file is cut off: it holds {there}")
                continue
            time = self._times[number]
            start = self._keys[max(bisect_right(self._keys, time) - 1, 0)]
            if frame is None or _time(frame) < start:
                frames = self._frames_from(start)
                frame = next(frames, None)
            while frame is not None and _time(frame) < time:
                frame = next(frames, None)
            if frame is None or _time(frame) != time or frame.is_corrupt:
                yield number, ImageError(f"frame {number} is damaged: it cannot be decoded")
            else:
                yield number, _upright(frame)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _open(self, path: Path) -> InputContainer:
        try:
            if path.stat().st_size == 0:
                raise Unusable("unreadable", "empty file")
            return self._av.open(str(path))
        except (self._av.FFmpegError, OSError) as error:
            raise Unusable("unreadable", f"cannot be opened as a video: {error.strerror}") from None

    def _choose_stream(self) -> VideoStream:
        for stream in self._container.streams.video:
            # The cover picture of a piece of music is a stream of video too.
            if not stream.disposition & self._av.stream.Disposition.attached_pic:
                stream.codec_context.thread_count = 1  # many videos at a time, one in each process
                return stream
        raise Unusable("unreadable", "no video in the file")

    def _read_times(self) -> int:
        """Note when frames are shown, and which are key frames; return how many the container counts."""
        times, keys, hidden = set(), set(), 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.is_discard:
                    hidden += 1
                elif packet.size:  # the last one is empty
                    times.add(_time(packet))
                    if packet.is_keyframe:
                        keys.add(_time(packet))
        except self._av.FFmpegError:
            pass  # a file that breaks off: what comes before is read, and the rest is counted as missing
        if not times:
            raise Unusable("unreadable", "no frame in the file")
        self._times, self._keys = sorted(times), sorted(keys) or [min(times)]
        return self._stream.frames - hidden

    def _frames_from(self, time: int) -> Iterator[VideoFrame]:
        """Decode from a key frame on, leaving out what cannot be decoded."""
        self._container.seek(time, stream=self._stream)
        try:
            for packet in self._container.demux(self._stream):
                try:
                    yield from packet.decode()
                except self._av.FFmpegError:
                    continue
        except self._av.FFmpegError:
            return


def _time(part: Packet[VideoStream] | VideoFrame) -> int:
    """When it is shown; AVI files say only when it is decoded, and -1 stands for no time at all."""
    return next((time for time in (part.pts, part.dts) if time is not None), -1)


def _upright(frame: VideoFrame) -> np.ndarray:
    """RGB, turned as the camera's note of its rotation asks for."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise UserError("videos are read by PyAV, which is not installed: pip install 'masm[video]'.") from None
    av.logging.set_level(None)  # damage is reported by us, once
    return av
