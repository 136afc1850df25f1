"""The face table: Parquet shards with one row per frame, image bytes included, and a side table of failures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from masm.errors import UserError

SCHEMA_VERSION = 3
SHARD_BYTES = 128 * 2**20
"""Image bytes after which a new shard is begun (64 to 256 MB read well from object stores)."""
ROW_GROUP = 256
"""Rows whose images form one page: what a reader of whole rows holds at once."""

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),  # unique: dataset/method/video_id/frame_index
        ("dataset", pa.string()),
        ("split", pa.string()),  # train, val or test
        ("label", pa.int8()),  # 0 real, 1 fake
        ("method", pa.string()),  # the forgery; "real" for reals
        ("family", pa.string()),  # kind of forgery; "real" for reals
        ("video_id", pa.string()),  # a video is (dataset, method, video_id); a photograph is a video
        ("frame_index", pa.int32()),
        ("track_id", pa.int32()),
        ("sources", pa.list_(pa.string())),  # the real videos that the frame was made from
        ("source_clip", pa.string()),
        ("identity", pa.string()),  # the person seen, or for a swap the person overwritten
        ("compression", pa.string()),
        ("width", pa.int32()),  # of the stored image, px
        ("height", pa.int32()),
        ("bbox", pa.list_(pa.float32(), 4)),  # x, y, width, height in the photograph as it was forged, px
        ("landmarks", pa.list_(pa.float32())),  # x0, y0, x1, y1 ... in the same pixels; null without
        ("crop_landmarks", pa.list_(pa.float32())),  # the first five in the stored image, px; null without
        ("mask", pa.binary()),  # PNG of the blending mask in the crop; null for reals
        ("forge_parameters", pa.string()),  # JSON; null for reals
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("image", pa.binary()),  # encoded crop
        ("image_bytes", pa.int32()),  # its length, by which `masm.data.stored` finds it; `write_table` fills it in
        ("sha256", pa.string()),  # of the image bytes
        ("phash", pa.string()),  # perceptual hash of the crop, 64 bits in hex
        ("profile", pa.string()),  # hash of the crop profile
        ("schema_version", pa.int16()),
    ]
)

FAILURES_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("label", pa.int8()),
        ("method", pa.string()),
        ("video_id", pa.string()),
        ("frame_index", pa.int32()),  # null: the whole video
        ("identity", pa.string()),
        ("outcome", pa.string()),  # unreadable, no face, too short
        ("reason", pa.string()),
    ]
)


def perceptual_hash(image: np.ndarray) -> str:
    """64 bits in hex that stay near each other for images that look alike.

    The signs of the 8 x 8 lowest frequencies of the grey image, about their median (the common pHash).

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA))[:8, :8].ravel()
    return np.packbits(low > np.median(low)).tobytes().hex()


def write_table(folder: Path, rows: Iterable[dict[str, Any]], failures: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Write a face table; the folder appears under its name only when it is whole.

    Beside the shards and failures.parquet lies outcomes.json, the count of videos by what became of them.

    Args:
        folder: replaced if it is there.
        rows: one for each frame, with the columns of `SCHEMA` but for image_bytes.
        failures: what could not be taken in, with the columns of `FAILURES_SCHEMA`.

    Returns:
        What outcomes.json holds: "ok" and each outcome of a failure -> videos.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    taken: set[tuple[str, str]] = set()
    try:
        for number, shard in enumerate(_shards(rows)):
            taken.update((row["method"], row["video_id"]) for row in shard)
            _write_shard(pa.Table.from_pylist(shard, schema=SCHEMA), partial / f"faces-{number:05d}.parquet")
        side = pa.Table.from_pylist(list(failures), schema=FAILURES_SCHEMA)
        pq.write_table(side, partial / "failures.parquet", compression="zstd")
        lost = Counter(failure["outcome"] for failure in failures if failure.get("frame_index") is None)
        outcomes = {"ok": len(taken), **dict(sorted(lost.items()))}
        (partial / "outcomes.json").write_text(json.dumps(outcomes) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return outcomes
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shards(rows: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        shard.append({**row, "image_bytes": len(row["image"])})
        size += len(row["image"])
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(table: pa.Table, path: Path) -> None:
    """Write rows so that the images, which are compressed already, lie end to end, a row group's in one page.

    That is what `masm.data.stored` relies on to read one image without its neighbours.
    """
    others = [leaf for leaf in _leaves(table.schema) if leaf != "image"]
    compression = {"image": "none", **dict.fromkeys(others, "zstd")}
    one_page = 2**31 - 1
    pq.write_table(
        table, path, row_group_size=ROW_GROUP, data_page_size=one_page, compression=compression,
        use_dictionary=others, write_statistics=others,
    )  # fmt: skip


def _leaves(schema: pa.Schema) -> list[str]:
    """The Parquet names of a schema's columns: a list is the column of its elements, a map two."""
    stream = pa.BufferOutputStream()
    pq.write_metadata(schema, stream)
    columns = pq.read_metadata(pa.BufferReader(stream.getvalue())).schema
    return [columns.column(index).path for index in range(len(columns.names))]


def read_table(folder: Path, columns: Sequence[str] | None = None, split: str | None = None) -> pa.Table:
    """The rows of a face table, in the order in which they were written.

    Args:
        folder: a face table's folder.
        columns: all where not given.
        split: only rows of this split.

    Raises:
        UserError: the folder is missing, empty, or of another schema version.
    """
    return pa.concat_tables(read_shards(folder, columns, split))


def read_shards(folder: Path, columns: Sequence[str] | None = None, split: str | None = None) -> Iterator[pa.Table]:
    """The rows of a face table shard by shard, as `read_table` gives them; by one thread, which spares memory."""
    filters = None if split is None else [("split", "=", split)]
    try:
        for shard in _readable_shards(folder):
            yield _read(shard, columns, filters)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(folder, error) from None


def shard_lengths(folder: Path) -> list[int]:
    """The number of rows of each shard of a face table.

    Raises:
        UserError: as for `read_table`.
    """
    try:
        return [pq.read_metadata(shard).num_rows for shard in _readable_shards(folder)]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(folder, error) from None


def _readable_shards(folder: Path) -> list[Path]:
    """The shards of a table of this schema version."""
    shards = table_shards(folder)
    version = _read(shards[0], ["schema_version"])["schema_version"][0].as_py()
    if version != SCHEMA_VERSION:
        raise UserError(f"{folder} has schema version {version}, this masm reads {SCHEMA_VERSION}: ingest it anew.")
    return shards


def _read(shard: Path, columns: Sequence[str] | None, filters: list[tuple[str, str, str]] | None = None) -> pa.Table:
    return pq.read_table(shard, columns=columns, filters=filters, use_threads=False, pre_buffer=False)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({error}): `dvc checkout` brings the stored one back.")


def read_rows(shard: Path, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Some rows of a shard, in the order of their numbers in `rows`; only the row groups that hold them are read.

    Raises:
        UserError: the shard is damaged, or has no such row.
    """
    wanted = np.asarray(rows)
    try:
        with pq.ParquetFile(shard) as file:
            sizes = np.array([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)])
            ends = np.cumsum(sizes)
            group_of = np.searchsorted(ends, wanted, side="right")
            groups = np.unique(group_of)
            first = np.cumsum(sizes[groups]) - ends[groups]  # from a row's number in the shard to that in what is read
            read = file.read_row_groups(groups.tolist(), columns=list(columns), use_threads=False)
        return read.take(pa.array(wanted + first[np.searchsorted(groups, group_of)]))
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        raise _damaged(shard, error) from None


def table_shards(folder: Path) -> list[Path]:
    """The Parquet files of a face table, in order.

    Raises:
        UserError: there are none.
    """
    shards = sorted(folder.glob("faces-*.parquet"))
    if not shards:
        raise UserError(f"{folder} holds no face table: run `dvc repro ingest@{folder.name}` to make it.")
    return shards


def read_failures(folder: Path) -> pa.Table:
    """The videos and frames that could not be taken in, with the columns of `FAILURES_SCHEMA`."""
    return pq.read_table(folder / "failures.parquet")


def sha256(data: bytes) -> str:
    """Hex digest of the bytes."""
    return hashlib.sha256(data).hexdigest()
