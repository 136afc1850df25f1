"""Uploaded files: the faces in them, found and cut out."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

from masm.data.images import ImageError
from masm.data.importers.photograph import Unusable
from masm.data.video import Video
from masm.serving.scorer import FoundFace, FoundFrame, Scorer


def find_faces(scorer: Scorer, data: bytes) -> list[FoundFace]:
    """The faces of an image file.

    Raises:
        ImageError: it cannot be used.
    """
    return scorer.find_faces(scorer.decode(data))


def find_frames(scorer: Scorer, data: bytes, longest: float) -> list[FoundFrame]:
    """The frames of a video file, of at most `longest` seconds, in which its face is judged.

    Raises:
        ImageError: it cannot be used, is too long, or shows no face.
    """
    with tempfile.NamedTemporaryFile(prefix="masm-", suffix=".video") as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        _check_length(path, longest)
        return scorer.find_frames(path)


def _check_length(path: Path, longest: float) -> None:
    try:
        video = Video(path)
    except Unusable as error:
        raise ImageError(error.reason) from None
    with closing(video):
        seconds = video.seconds(video.numbers[-1])
    if seconds is not None and seconds > longest:
        raise ImageError(f"the video lasts {seconds:.0f} s, more than the {longest:g} s that this service takes")
