"""A folder of video files; folders' names or a CSV file say what is real."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from masm.data.importers.layout import (
    SPLITS,
    UNSPLIT,
    VIDEO_SUFFIXES,
    Layout,
    Notes,
    Source,
    files_below,
    locate,
    read_text,
)
from masm.data.index import Clip
from masm.errors import UserError

LABELS = {"real": 0, "fake": 1, "0": 0, "1": 1}
COLUMNS = {"path", "label", "split", "method", "identity", "source"}


def _read(source: Source, notes: Notes) -> Iterator[Clip]:
    files = files_below(source.path, VIDEO_SUFFIXES, notes)
    rows = list(_by_folders(source, files)) if source.labels is None else _listed(source, source.labels)
    named = set()
    for row in rows:
        file = locate(source.path, row["path"], notes)
        named.add(file)
        yield _clip(source, file, row)
    if unnamed := set(files) - named:
        notes["videos that the CSV file does not name left out"] += len(unnamed)


def _by_folders(source: Source, files: list[Path]) -> Iterator[dict[str, str]]:
    """[split/]real/video.mp4 or [split/]fake/[method/]video.mp4"""
    for file in files:
        path = file.relative_to(source.path)
        parts = list(path.parts[:-1])
        split = parts.pop(0) if parts and parts[0] in SPLITS else ""
        if not parts or parts[0] not in ("real", "fake"):
            raise UserError(
                f"{file} lies in neither real nor fake: move it, or say what it is with --labels FILE.csv."
            )
        yield {"path": path.as_posix(), "label": parts[0], "split": split, "method": parts[1] if parts[1:] else ""}


def _listed(source: Source, labels: Path) -> list[dict[str, str]]:
    """The rows of the CSV file, checked."""
    reader = csv.DictReader(read_text(labels).splitlines())
    columns = set(reader.fieldnames or ())
    if not {"path", "label"} <= columns <= COLUMNS:
        raise UserError(f"{labels}: its columns must be path, label and any of {', '.join(sorted(COLUMNS))}.")
    rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    for number, row in enumerate(rows, start=2):
        if row["label"].lower() not in LABELS:
            raise UserError(f"{labels}, line {number}: label {row['label']!r} is none of real, fake, 0 and 1 (fake).")
        if row.get("split") and row["split"] not in SPLITS:
            raise UserError(f"{labels}, line {number}: split {row['split']!r} is none of train, val and test.")
    return rows


def _clip(source: Source, file: Path, row: dict[str, str]) -> Clip:
    label = LABELS[row["label"].lower()]
    video = file.relative_to(source.path).with_suffix("").as_posix()
    own = f"{source.name}:{video}"
    recording = f"{source.name}:{Path(row['source']).with_suffix('').as_posix()}" if row.get("source") else None
    return Clip(
        video_id=video,
        split=row.get("split") or UNSPLIT,
        label=label,
        method=(row.get("method") or "fake") if label else "real",
        family="unknown" if label else "real",
        identity=f"{source.name}:{row['identity']}" if row.get("identity") else None,
        source_clip=recording or own,
        sources=(recording,) if recording else () if label else (own,),
        compression="unknown",
        files=(file,),
    )


LAYOUT = Layout(
    name="videos",
    summary="your own video files, labelled by folders or by a CSV file (--labels)",
    tree="""\
SRC/[{train,val,test}/]real/<video>.mp4
SRC/[{train,val,test}/]fake/[<method>/]<video>.mp4
or --labels FILE.csv with columns path, label (real, fake) and any of split, method, identity, source""",
    read=_read,
)
