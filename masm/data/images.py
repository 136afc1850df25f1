"""The encoded images of face tables: read one by one from where they lie in the Parquet shards, and decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from masm.data.table import sha256, table_shards
from masm.errors import UserError

OPEN_FILES = 256
"""Shards that are kept open; systems allow a process 1,024 files or more."""
_LENGTH_BYTES = 4
"""Before each image, Parquet's PLAIN encoding has its length, little-endian."""


class StoredImages(Sequence[bytes]):
    """Images of some rows of face tables. It holds their places alone; the bytes are read when they are asked for.

    Any number of threads may read at once. A pickled copy reads the same files.

    Args:
        shards: Parquet files that `write_table` wrote.
        numbers: (n,) in which of the shards each image lies.
        offsets: (n,) of its first byte in the file.
        lengths: (n,) in bytes.
    """

    def __init__(self, shards: list[Path], numbers: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        self._shards, self._numbers, self._offsets, self._lengths = shards, numbers, offsets, lengths
        # Not memory-mapped: mapped pages would count as the process's own, and a file that is cut short would kill it.
        self._open = lru_cache(OPEN_FILES)(lambda number: shards[number].open("rb", buffering=0))

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> StoredImages: ...
    def __getitem__(self, index: int | slice) -> bytes | StoredImages:
        return self.take(np.arange(len(self))[index]) if isinstance(index, slice) else self._read(index)

    def __reduce__(self) -> tuple[type[StoredImages], tuple[object, ...]]:
        return StoredImages, (self._shards, self._numbers, self._offsets, self._lengths)

    def take(self, rows: np.ndarray) -> StoredImages:
        """The images of some rows, in their order."""
        return StoredImages(self._shards, self._numbers[rows], self._offsets[rows], self._lengths[rows])

    def _read(self, index: int) -> bytes:
        number, length = int(self._numbers[index]), int(self._lengths[index])
        file = self._open(number)
        stored = os.pread(file.fileno(), _LENGTH_BYTES + length, int(self._offsets[index]) - _LENGTH_BYTES)
        prefix, image = stored[:_LENGTH_BYTES], stored[_LENGTH_BYTES:]
        if prefix != length.to_bytes(_LENGTH_BYTES, "little") or len(image) != length:
            raise UserError(
                f"{self._shards[number]} changed while it was read, or is damaged: `dvc checkout` brings it back."
            )
        return image


def stored_images(tables: Sequence[Path]) -> StoredImages:
    """All images of some face tables, in the order in which `read_table` gives the rows.

    Raises:
        UserError: a table is missing or damaged.
    """
    shards = [shard for table in tables for shard in table_shards(table)]
    offsets, lengths = zip(*map(_places, shards), strict=True)
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [len(own) for own in offsets])
    return StoredImages(shards, numbers, np.concatenate(offsets), np.concatenate(lengths))


def _places(shard: Path) -> tuple[np.ndarray, np.ndarray]:
    """Offset and length in bytes of each image of a shard.

    The images of a row group are the values of a single page (see `write_table`), each after its length, and the
    page ends where the column does: so the last image ends there, and the one before it where that begins.
    """
    try:
        with pq.ParquetFile(shard) as file:
            lengths = file.read(["image_bytes"])["image_bytes"].to_numpy()
            column = file.schema.names.index("image")
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            chunks = [group.column(column) for group in groups]
            ends = np.array([chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks])
            rows = np.array([group.num_rows for group in groups])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{shard} is damaged ({error}): `dvc checkout` brings the stored one back.") from None
    taken = np.cumsum(lengths.astype(np.int64) + _LENGTH_BYTES)  # by the images up to and with each one
    return np.repeat(ends - taken[np.cumsum(rows) - 1], rows) + taken - lengths, lengths


def decode(images: Iterable[bytes]) -> torch.Tensor:
    """Encoded images of one size as a (n, 3, H, W) uint8 RGB tensor, in memory pixel by pixel as they were decoded.

    Raises:
        UserError: one of them is damaged or of another size; none is ever left out or replaced.
    """
    images = list(images)
    batch = np.empty(0, np.uint8)
    for index, image in enumerate(images):
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB) if image else None
        if pixels is None:
            raise UserError(f"a stored frame with sha256 {sha256(image)} is damaged: `dvc checkout` brings it back.")
        if index == 0:
            batch = np.empty((len(images), *pixels.shape), np.uint8)
        if pixels.shape != batch.shape[1:]:
            raise UserError(
                f"a stored frame with sha256 {sha256(image)} has {pixels.shape[1]} x {pixels.shape[0]} pixels, others "
                f"{batch.shape[2]} x {batch.shape[1]}: ingest all tables with the same crop.size."
            )
        batch[index] = pixels
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def decoded(images: Sequence[bytes], batches: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    """`decode` of each batch of rows, in order, by as many threads as torch has, ahead of the caller.

    Each thread has a batch to itself and one more waits, so that memory holds a few batches, however many
    there are.

    Raises:
        UserError: as for `decode`, when it is the damaged batch's turn.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[torch.Tensor]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for rows in batches:
            waiting.append(pool.submit(lambda rows: decode(images[int(row)] for row in rows), rows))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """The rows 0 to `count` - 1 in batches; the last holds what is left."""
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count))
