"""Celeb-DF, version 1 or 2, as it is downloaded. In its list of test videos label 1 is real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from masm.data.importers.layout import VIDEO_SUFFIXES, Layout, Notes, Source, files_below, locate, read_text
from masm.data.importers.provenance import named_clip
from masm.data.index import Clip
from masm.errors import UserError

FOLDERS = {"Celeb-real": 0, "YouTube-real": 0, "Celeb-synthesis": 1}


def _read(source: Source, notes: Notes) -> Iterator[Clip]:
    listed = _test_videos(source, notes)
    for folder, label in FOLDERS.items():
        there = files_below(source.path / folder, VIDEO_SUFFIXES, notes)
        absent = {path for path in listed if path.parent.name == folder} - set(there)
        for file in sorted({*there, *absent}):
            method = "Celeb-synthesis" if label else "real"
            yield named_clip("Celeb-DF", file.stem, method, "test" if file in listed else "train", (file,))


def _test_videos(source: Source, notes: Notes) -> set[Path]:
    """The videos of List_of_testing_videos.txt, whose lines are `1 YouTube-real/00170.mp4`."""
    manifest = source.path / "List_of_testing_videos.txt"
    listed = set()
    for number, line in enumerate(read_text(manifest).splitlines(), start=1):
        if not line.strip():
            continue
        label, _, name = line.strip().partition(" ")
        path = locate(source.path, name.strip(), notes)
        if label not in ("0", "1") or FOLDERS.get(path.parent.name) != 1 - int(label):
            raise UserError(f"{manifest}, line {number}: {line.strip()!r} is not as expected: 1 is real, 0 is fake.")
        listed.add(path)
    return listed


LAYOUT = Layout(
    name="celebdf",
    summary="Celeb-DF v1 or v2 as downloaded; what its list does not name for the test is train",
    tree="""\
SRC/Celeb-real/id0_0000.mp4
SRC/YouTube-real/00000.mp4
SRC/Celeb-synthesis/id0_id1_0000.mp4
SRC/List_of_testing_videos.txt      (1 is real)""",
    read=_read,
)
