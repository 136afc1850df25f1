"""`masm score`: the images and videos of some paths, and the table of what is said of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from rich.markup import escape
from rich.table import Table

from masm.data.images import IMAGE_SUFFIXES, ImageError
from masm.data.importers.layout import VIDEO_SUFFIXES
from masm.detector import weights_digest
from masm.errors import UserError
from masm.serving.many import Result, Task, image_task, score_many, video_task
from masm.serving.results import VideoResult
from masm.serving.scorer import FoundFace, Scorer

ROWS_AT_ONCE = 4096
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "kind": pa.string(),
        "frame_index": pa.int64(),
        "seconds": pa.float64(),
        "outcome": pa.string(),
        "score": pa.float64(),
        "probability": pa.float64(),
        "verdict": pa.string(),
        "faces": pa.int64(),
        **dict.fromkeys(("x", "y", "width", "height"), pa.float64()),
        "model": pa.string(),
        "model_sha256": pa.string(),
    }
)
"""One row for each file, `kind` image or video, and where they are asked for one for each frame that a video is judged
by, `kind` frame. `faces` found in an image, or frames of a video with its face. The box is that of the face that
decides, in pixels; a video's row has none. `model` is what the model is called, `model_sha256` that of its weights."""

_WRITERS: dict[str, Callable[..., pq.ParquetWriter | csv.CSVWriter]] = {
    ".parquet": pq.ParquetWriter,
    ".csv": csv.CSVWriter,
}


def find_media(paths: Sequence[Path]) -> list[Path]:
    """The files to score, each once: files as they are named, and all images and videos of folders and those below.

    Raises:
        UserError: a path is neither file nor folder, or a folder holds no image or video.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.is_dir() and not path.is_file():
            raise UserError(f"{path} is no file or folder: name images, videos, or folders of them.")
        for file in _media_below(path) if path.is_dir() else [path]:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def _media_below(folder: Path) -> list[Path]:
    """Sorted; a dangling link is a file that cannot be read, and says so in its row."""
    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    files = [file for file in folder.rglob("*") if file.suffix.lower() in wanted and not file.is_dir()]
    if not files:
        raise UserError(f"{folder} holds no image or video ({', '.join(sorted(wanted))}).")
    return sorted(files)


def score_rows(
    scorer: Scorer, model: str, files: Sequence[Path], frames: bool, progress: Callable[[Result], None]
) -> Iterator[dict[str, Any]]:
    """The rows of `SCHEMA` of each file, in their order; by its name's end it is an image, else taken for a video.

    Args:
        scorer: the model.
        model: what it is called.
        files: of `find_media`.
        frames: whether the frames of videos have rows, too.
        progress: called with the result of each file.
    """
    named = {"model": model, "model_sha256": weights_digest(scorer.folder)}
    results = score_many(scorer, (file_task(scorer, file) for file in files))
    for file, result in zip(files, results, strict=True):
        progress(result)
        yield from (row | named for row in rows_of(file, result, frames))


def file_task(scorer: Scorer, file: Path) -> Task:
    """A file to score: an image by its name's end, else it is taken for a video."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return image_task(scorer, lambda: _find_faces(scorer, file))
    return video_task(scorer, lambda: scorer.find_in_video(file))


def _find_faces(scorer: Scorer, file: Path) -> list[FoundFace]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None
    return scorer.find_in_image(data)


def rows_of(path: Path, result: Result, frames: bool) -> Iterator[dict[str, Any]]:
    """The rows of one file by `SCHEMA`, but for the model, with those of a video's frames if asked for."""
    name = os.fsencode(path).decode(errors="replace")
    row = {"path": name, "outcome": result.outcome, "score": result.score}
    row |= {"probability": result.probability, "verdict": result.verdict}
    if not isinstance(result, VideoResult):
        box = result.faces[0].box if result.faces else None
        yield row | {"kind": "image", "faces": len(result.faces)} | _box_columns(box)
        return
    yield row | {"kind": "video", "faces": len(result.frames)}
    for frame in result.frames if frames else ():
        place = {"frame_index": frame.frame_index, "seconds": frame.seconds}
        scored = {"path": name, "kind": "frame", "outcome": result.outcome, "score": frame.score}
        yield scored | place | _box_columns(frame.box)


def _box_columns(box: Sequence[float] | None) -> dict[str, float]:
    return {} if box is None else dict(zip(("x", "y", "width", "height"), box, strict=True))


def check_out(out: Path) -> None:
    """Raise UserError where `write_rows` could not write to `out`."""
    if out.suffix.lower() not in _WRITERS:
        raise UserError(f"--out {out}: its name must end in {' or '.join(_WRITERS)}.")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}.")


def write_rows(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of `SCHEMA` as Parquet or CSV, by the name's end; a former file is replaced when all are there."""
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    waiting = iter(rows)
    try:
        with _WRITERS[out.suffix.lower()](str(fresh), SCHEMA) as writer:
            while part := list(islice(waiting, ROWS_AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(part, SCHEMA))
        fresh.rename(out)
    finally:
        with suppress(FileNotFoundError):
            fresh.unlink()


def table_of(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows of `SCHEMA` as a table for the terminal."""
    table = Table("file", "frame", "score", "probability", "verdict", "faces", "outcome")
    for row in rows:
        frame, verdict, faces = (_cell(row.get(name)) for name in ("frame_index", "verdict", "faces"))
        score, probability = (_cell(row.get(name), ".4f") for name in ("score", "probability"))
        table.add_row(escape(row["path"]), frame, score, probability, verdict, faces, escape(row["outcome"]))
    return table


def _cell(value: Any, form: str = "") -> str:
    return "" if value is None else format(value, form)
