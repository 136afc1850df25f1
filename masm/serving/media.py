"""What a request brings as text: base64, or the name of a file below one folder; none unless that folder is set."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from masm.data.images import ImageError

MOST_BYTES = 2**28
"""Of an image file, where nothing else is said."""


def from_base64(text: Any) -> bytes:
    """The bytes of base64, lines broken or not.

    Raises:
        ImageError: it is not base64, or no text at all.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)  # the command base64 breaks lines
    except (AttributeError, ValueError):  # binascii.Error is a ValueError, letters outside of ASCII another
        raise ImageError("not base64") from None


def read_media(text: str, root: Path | None, limit: int = MOST_BYTES) -> bytes:
    """The bytes of the file that `text` names, see `media_file`; of `limit` at most.

    Raises:
        ImageError: it may not be read, cannot be, or is larger.
    """
    return read_file(media_file(text, root), limit)


def read_file(path: Path, limit: int = MOST_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        ImageError: it cannot be read, or has more than `limit`.
    """
    try:
        if path.stat().st_size > limit:
            raise ImageError(f"the file has more than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None


def media_file(text: str, root: Path | None) -> Path:
    """The file that `text` names, a path below `root`: as it is seen from there, or absolute.

    Args:
        text: of the request.
        root: the folder; None where no file may be named.

    Raises:
        ImageError: it may not be read, or is no file; of what lies outside nothing is said, not even whether it is.
    """
    if root is None:
        raise ImageError("file paths are not taken: send the file, or let MASM_MEDIA_ROOT name the folder of files")
    base = root.resolve()
    try:
        path = (base / text).resolve()  # with symbolic links followed
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError, TypeError):  # too long, a ring of links, a zero byte, no text
        raise ImageError("not a path") from None
    if ".." in Path(text).parts or not path.is_relative_to(base):
        raise ImageError("a path outside of the folder that files may come from")
    if not is_file:
        raise ImageError("no such file in the folder that files may come from")
    return path
