"""Frames of a clip, by their numbers: of a video file through PyAV, or of a folder of pictures.

A video's frames are numbered in the order in which they are shown, whatever their times: its packets are read
once without decoding, which is quick, and their times say how many frames there are, which of them begin anew
(key frames), and when each is shown. A frame is then decoded from the key frame before it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from masm.data.images import IMAGE_SUFFIXES, MOST_PIXELS, ImageError, decode_image, too_large
from masm.data.importers.photograph import Unusable
from masm.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_CONTAINERS = "mov,mp4,avi,matroska,webm,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg"
"""FFmpeg's names of the formats that are opened. Others, such as playlists, name further files and addresses, which
FFmpeg would read: what is uploaded as a video must not show what else lies on the machine."""


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

    def seconds(self, number: int) -> float | None:
        """When a frame is shown, from the first one on; None where the clip does not say it."""

    def close(self) -> None:
        """Let go of the file."""


def open_frames(files: Sequence[Path], max_pixels: int = MOST_PIXELS) -> Frames:
    """The frames of one video file, or of pictures in frame order; larger ones than `max_pixels` are not decoded.

    Raises:
        Unusable: the video is unreadable.
        UserError: a video, and PyAV is not installed.
    """
    if len(files) == 1 and files[0].suffix.lower() not in IMAGE_SUFFIXES:
        return Video(files[0], max_pixels)
    return Pictures(files, max_pixels)


def spread(length: int, count: int | None) -> list[int]:
    """`count` of `length` places, evenly over all of them: the middles of equal parts. All where there are fewer."""
    if count is None or count >= length:
        return list(range(length))
    return [(2 * part + 1) * length // (2 * count) for part in range(count)]


class Pictures:
    """Frames that are image files; where their names end in rising numbers, these are the frames' numbers."""

    def __init__(self, files: Sequence[Path], max_pixels: int = MOST_PIXELS) -> None:
        self._max_pixels = max_pixels
        named = [int(end.group()) for file in files if (end := re.search(r"[0-9]+$", file.stem))]
        rising = len(named) == len(files) and all(first < second for first, second in pairwise(named))
        self.numbers: Sequence[int] = named if rising else range(len(files))
        self._files = dict(zip(self.numbers, files, strict=True))

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """See `Frames`."""
        for number in numbers:
            file = self._files[number]
            try:
                yield number, decode_image(file.read_bytes(), self._max_pixels)
            except ImageError as error:
                yield number, ImageError(f"{file.name}: {error}")
            except OSError as error:
                yield number, ImageError(f"{file.name}: {error.strerror}")

    def seconds(self, number: int) -> None:
        """Pictures have no times."""

    def close(self) -> None:
        """Nothing stays open."""


class Video:
    """The frames of a video file.

    Where an MP4 file's table lists more frames than are in it, as after a broken download, those that are missing
    have numbers too.

    Raises:
        Unusable: nothing of the file can be read.
        UserError: PyAV is not installed.
    """

    def __init__(self, path: Path, max_pixels: int = MOST_PIXELS) -> None:
        self._av = _pyav()
        self._path, self._max_pixels = path, max_pixels
        # FFmpeg counts what lies in memory, rows padded to 64 pixels; so it stops what grows after the first frame.
        self._limits = {"format_whitelist": _CONTAINERS, "max_pixels": str(2 * max_pixels)}
        self._open()
        try:
            missing = self._read_times()
        except Unusable:
            self.close()
            raise
        self.numbers: Sequence[int] = range(len(self._times) + missing)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """See `Frames`; it seeks where a key frame lies between two of the numbers."""
        frames: Iterator[_Timed] = iter(())
        latest: _Timed | None = None
        for number in numbers:
            if number >= len(self._times):
                there = f"{len(self._times)} of its {len(self.numbers)} frames"
                yield number, ImageError(f"the file is cut off: it holds {there}")
                continue
            time = self._times[number]
            start = self._keys[max(bisect_right(self._keys, time) - 1, 0)]
            if latest is None or latest.time < start:
                frames = self._frames_from(start)
                latest = next(frames, None)
            while latest is not None and latest.time < time:
                latest = next(frames, None)
            if latest is None or latest.time != time or latest.damaged:
                yield number, ImageError(f"frame {number} is damaged, or one that it is decoded from")
            else:
                yield number, _upright(latest.frame)

    def seconds(self, number: int) -> float | None:
        """See `Frames`."""
        if self._counted:
            rate = self._stream.average_rate
            return float(number / rate) if rate else None
        if number >= len(self._times) or self._stream.time_base is None:
            return None
        return float((self._times[number] - self._times[0]) * self._stream.time_base)

    def duration(self) -> float | None:
        """Seconds up to the last frame that is in the file; None where it does not say it."""
        return self.seconds(len(self._times) - 1)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _open(self) -> None:
        try:
            if self._path.stat().st_size == 0:
                raise Unusable("unreadable", "empty file")
            self._container: InputContainer = self._av.open(
                str(self._path), options=self._limits, metadata_errors="ignore"
            )
        except (self._av.FFmpegError, OSError) as error:
            refused = isinstance(error, self._av.ArgumentError)
            reason = f"not of the formats {_CONTAINERS}" if refused else error.strerror
            raise Unusable("unreadable", f"cannot be opened as a video: {reason}") from None
        # The cover picture of a piece of music is a stream of video too.
        cover = self._av.stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & cover]
        if not streams:
            self.close()
            raise Unusable("unreadable", "no video in the file")
        self._stream: VideoStream = streams[0]
        if self._stream.codec_context is None:
            self.close()
            raise Unusable("unreadable", "the video is coded in a way that PyAV does not know")
        if refusal := too_large(self._stream.width, self._stream.height, self._max_pixels):
            self.close()
            raise Unusable("unreadable", refusal)
        self._stream.codec_context.options = {"max_pixels": self._limits["max_pixels"]}
        self._stream.codec_context.thread_count = 1  # many videos at a time, one in each process

    def _read_times(self) -> int:
        """Note when frames are shown, and which are key frames; return how many more the file's table lists."""
        # The last packet is empty; and none is kept, as together they are the whole file.
        stored = [(part.pts, part.is_keyframe, part.is_discard) for part in self._packets() if part.size]
        shown = [(pts, is_key) for pts, is_key, hidden in stored if not hidden]
        if not shown:
            raise Unusable("unreadable", "no frame in the file")
        times = {pts for pts, _ in shown if pts is not None}
        self._counted = self._container.format.name == "avi" or len(times) < len(shown)
        """Whether the file does not say when each frame is shown: they are counted from the first one.

        An AVI never says it; FFmpeg guesses, wrongly where H.264's frames are out of order.
        """
        self._times = list(range(len(shown))) if self._counted else sorted(times)
        keys = {pts for pts, is_key in shown if is_key and pts is not None}
        self._keys = [0] if self._counted else sorted({self._times[0], *keys})
        self._enterable = not self._counted
        """Whether decoding may begin at a key frame: until an attempt ends elsewhere."""
        listed = self._stream.frames if "mp4" in self._container.format.name else 0
        return max(listed - len(stored), 0)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """What is stored, up to where the file breaks off."""
        with suppress(self._av.FFmpegError):
            yield from self._container.demux(self._stream)

    def _frames_from(self, start: int) -> Iterator[_Timed]:
        """Decode from a key frame on; from the first one where a file cannot be entered at the one asked for."""
        if self._enterable:
            with suppress(self._av.FFmpegError):
                self._container.seek(start, stream=self._stream)
                frames = self._decode()
                first = next(frames, None)
                if first is not None and first.time <= start:
                    yield first
                    yield from frames
                    return
            self._enterable, self._keys = False, self._keys[:1]
        self.close()
        self._open()
        yield from self._decode()

    def _decode(self) -> Iterator[_Timed]:
        damaged, count = False, 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                damaged = True
                continue
            for frame in frames:
                # What follows is made from the damaged frame, up to the next that stands alone; and where frames are
                # counted, those after a lost one have no certain number.
                damaged = frame.is_corrupt or (damaged and (self._counted or not frame.key_frame))
                time = count if self._counted or frame.pts is None else frame.pts
                yield _Timed(time, frame, damaged)
                count += 1


@dataclass(frozen=True)
class _Timed:
    time: int
    frame: VideoFrame
    damaged: bool


def _upright(frame: VideoFrame) -> np.ndarray:
    """RGB, turned as the camera's note of its rotation asks for."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise UserError("videos are read by PyAV, which is not installed: pip install 'masm[video]'.") from None
    return av
