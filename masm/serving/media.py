"""Files that a request names: only those below one folder, and none unless that folder is set."""

from __future__ import annotations

from pathlib import Path

from masm.data.images import ImageError


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
