"""The index of an imported dataset: one row per video, so that ingest and DVC need not hash terabytes of raw video.

Names of people and of real recordings carry their origin, as in "FF++:071": two datasets may both have a video
"071", and DF40's forgeries of FF++ show the very recordings of FF++.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from masm.errors import UserError

SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("split", pa.string()),
        ("label", pa.int8()),
        ("method", pa.string()),
        ("family", pa.string()),
        ("identity", pa.string()),
        ("source_clip", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("compression", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("files", pa.list_(pa.string())),  # relative to the root, which stands in the file's metadata
        ("masks", pa.list_(pa.string())),
        ("sizes", pa.list_(pa.int64())),  # of the files, then the masks, in bytes; null where there is none
        ("mtimes", pa.list_(pa.int64())),  # of the same, in ns
    ]
)
ROW_GROUP = 256
"""Videos that are in memory at once when an index is read."""


@dataclass(frozen=True)
class Clip:
    """A video as a layout describes it; nothing is opened yet.

    Attributes:
        video_id: unique among the videos of its split and method.
        split: train, val or test; "" where the layout does not say; "excluded" where a strict split leaves it out.
        label: 0 real, 1 fake.
        method: the forgery; "real" for reals.
        family: kind of forgery; "real" for reals, "unknown" where nobody says.
        identity: the person seen; None where the layout does not say.
        source_clip: the real recording that it shows; for reals, and where nobody says, its own.
        sources: the real recordings that it was made from.
        compression: raw, c23, c40 or "unknown".
        files: one video file, or its frames in their order.
        masks: forgery masks beside the files, a video or images; may be empty.
        attributes: what else the layout says, by name.
    """

    video_id: str
    split: str
    label: int
    method: str
    family: str
    identity: str | None
    source_clip: str
    sources: tuple[str, ...]
    compression: str
    files: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stamp:
    """By which a file is known not to have changed: its size in bytes and its modification time in ns."""

    size: int
    mtime: int


@dataclass(frozen=True)
class IndexedClip:
    """A clip, and the stamps of its files and masks as they were when it was imported; None: there was none."""

    clip: Clip
    stamps: tuple[Stamp | None, ...]

    def changed(self) -> Path | None:
        """The first file that is no longer what was imported."""
        paths = (*self.clip.files, *self.clip.masks)
        return next((path for path, stamp in zip(paths, self.stamps, strict=True) if stamp_of(path) != stamp), None)


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def write_index(path: Path, clips: Iterable[IndexedClip], root: Path) -> str:
    """Write an index, whole or not at all.

    Args:
        path: the Parquet file; replaced if it is there.
        clips: their files lie below `root`.
        root: absolute; it is no part of the digest, so that data may move.

    Returns:
        16 hex digits over all rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    schema = SCHEMA.with_metadata({"root": str(root)})
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for rows in _batches(_row(indexed, root) for indexed in clips):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return index_digest(path)


def read_index(path: Path, splits: Sequence[str] | None = None) -> Iterator[IndexedClip]:
    """The clips of an index in their order, a few in memory at once.

    Args:
        path: the Parquet file.
        splits: only clips of these splits.

    Raises:
        UserError: there is no such index, or it is damaged.
    """
    root = index_root(path)
    with _opened(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            for row in batch.to_pylist():
                if splits is None or row["split"] in splits:
                    yield _indexed(row, root)


def index_digest(path: Path) -> str:
    """16 hex digits over all rows; the root is no part of them."""
    digest = hashlib.sha256()
    with _opened(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            for row in batch.to_pylist():
                digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def index_root(path: Path) -> Path:
    """The folder below which all files of an index lie."""
    with _opened(path) as file:
        return Path(file.schema_arrow.metadata[b"root"].decode())


def count_splits(path: Path) -> dict[str, int]:
    """How many videos each split has."""
    with _opened(path) as file:
        counts = file.read(columns=["split"])["split"].value_counts().to_pylist()
    return {entry["values"]: entry["counts"] for entry in counts}


def forged_methods(path: Path) -> list[str]:
    """The methods of the fakes, sorted."""
    with _opened(path) as file:
        rows = file.read(columns=["label", "method"])
    return sorted(rows.filter(pc.field("label") == 1)["method"].unique().to_pylist())


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise UserError(f"there is no index at {path}: run `masm data import` again.") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"the index {path} cannot be read ({error}): run `masm data import` again.") from None


def _row(indexed: IndexedClip, root: Path) -> dict[str, Any]:
    clip, stamps = indexed.clip, indexed.stamps
    return {
        "video_id": clip.video_id,
        "split": clip.split,
        "label": clip.label,
        "method": clip.method,
        "family": clip.family,
        "identity": clip.identity,
        "source_clip": clip.source_clip,
        "sources": list(clip.sources),
        "compression": clip.compression,
        "attributes": list(clip.attributes),
        "files": [path.relative_to(root).as_posix() for path in clip.files],
        "masks": [path.relative_to(root).as_posix() for path in clip.masks],
        "sizes": [None if stamp is None else stamp.size for stamp in stamps],
        "mtimes": [None if stamp is None else stamp.mtime for stamp in stamps],
    }


def _indexed(row: dict[str, Any], root: Path) -> IndexedClip:
    sizes, mtimes = row.pop("sizes"), row.pop("mtimes")
    clip = Clip(
        **{
            **row,
            "sources": tuple(row["sources"]),
            "attributes": tuple(tuple(pair) for pair in row["attributes"]),
            "files": tuple(root / path for path in row["files"]),
            "masks": tuple(root / path for path in row["masks"]),
        }
    )
    return IndexedClip(
        clip, tuple(None if size is None else Stamp(size, mtime) for size, mtime in zip(sizes, mtimes, strict=True))
    )


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROW_GROUP:
            yield batch
            batch = []
    yield batch
