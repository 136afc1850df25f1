"""What every layout gives, and how its files are found: nothing that is there is passed over in silence."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from masm.data.index import Clip
from masm.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"}
COMPRESSIONS = ("raw", "c23", "c40")
SPLITS = ("train", "val", "test")
UNSPLIT = ""
"""The split of a clip whose layout names none; the import gives it the one of the dataset's role."""


@dataclass(frozen=True)
class Source:
    """What is imported.

    Attributes:
        path: the file or folder that the layout starts from.
        root: the folder at which the paths in a manifest begin, and below which all files lie; absolute.
        name: of the dataset, the origin of people and recordings where the layout knows no other.
        compression: of FaceForensics++, where more than one level is there.
        labels: a CSV file that says what is real, for the layout `videos`.
    """

    path: Path
    root: Path
    name: str
    compression: str | None = None
    labels: Path | None = None


Notes = Counter[str]
"""What an importer left out or read otherwise than it stood there, and how often."""


@dataclass(frozen=True)
class Layout:
    """A way in which face data lie on disk.

    Attributes:
        name: on the command line.
        summary: what it is, in one line.
        tree: what is expected on disk, as a drawing.
        read: gives the clips, and counts what it leaves out.
    """

    name: str
    summary: str
    tree: str
    read: Callable[[Source, Notes], Iterator[Clip]]


def files_below(folder: Path, suffixes: Iterable[str], notes: Notes) -> list[Path]:
    """Every file with one of these suffixes below a folder, sorted; others are counted.

    Raises:
        UserError: the folder is missing, or a folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.")

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                found.append(path)
            else:
                notes[f"other files left out ({path.suffix.lower() or name})"] += 1
    return sorted(found)


def locate(root: Path, text: str, notes: Notes) -> Path:
    r"""The file that a manifest names, whatever separator it uses; absolute paths must lie below the root, too.

    Raises:
        UserError: the path leads out of the root.
    """
    if "\\" in text:
        notes["paths with \\ were read as paths with /"] += 1
    path = Path(posixpath.normpath(posixpath.join(root.as_posix(), text.replace("\\", "/"))))
    if path == root or not path.is_relative_to(root):
        raise UserError(f"{text!r} leads out of {root}: give the folder at which its paths begin as --root.")
    return path


def in_frame_order(files: Iterable[Path]) -> tuple[Path, ...]:
    """By the number in the file's name (2 before 10), then by name."""

    def key(file: Path) -> tuple[int, str]:
        numbers = re.findall(r"\d+", file.stem)
        return (int(numbers[-1]) if numbers else -1, file.as_posix())

    return tuple(sorted(files, key=key))


def read_text(path: Path) -> str:
    """A manifest's text.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file.") from None


def photographed(files: Iterable[Path]) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Files of one folder each: the folder, and its files in frame order."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    for folder, members in folders.items():
        yield folder, in_frame_order(members)
