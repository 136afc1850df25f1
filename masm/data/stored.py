"""The encoded images of face tables: read one by one from where they lie in the Parquet shards, and decoded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import TypeVar, overload

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from masm.data.decoded import DecodedImages
from masm.data.table import sha256, table_shards
from masm.errors import UserError

Images = Sequence[bytes] | DecodedImages
"""What training reads: encoded images, or some that are decoded already."""

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

OPEN_FILES = 256
"""Shards that are kept open; systems allow a process 1,024 files or more."""
LENGTH_BYTES = 4
"""Before each image, Parquet's PLAIN encoding has its length, little-endian."""


@dataclass(frozen=True)
class Shard:
    """A Parquet file that `write_table` wrote, as it was when its images were found in it.

    Attributes:
        path: of the file.
        size: of the file in bytes.
        modified: its time of modification in nanoseconds; None where the node does not know it.
    """

    path: Path
    size: int
    modified: int | None

    def open(self) -> FileIO:
        """Open the file to read.

        Raises:
            UserError: it is missing, or another than before.
        """
        try:
            file = FileIO(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): `dvc checkout` brings it back.") from None
        size, modified = _state(file)
        if size != self.size or self.modified not in (None, modified):
            raise UserError(f"{self.path} was replaced while it was in use: start again.")
        return file


class StoredImages(Sequence[bytes]):
    """Images of some rows of face tables. It holds their places alone; the bytes are read when they are asked for.

    Any number of threads may read at once. A pickled copy reads the same files, or on another node those of the same
    paths and sizes. They are not mapped into memory: the mapped pages would count as the process's own, and a file
    that is cut short would end it.

    Args:
        shards: the files.
        numbers: (n,) in which of the shards each image lies.
        offsets: (n,) of its first byte in the file.
        lengths: (n,) in bytes.
    """

    def __init__(self, shards: Sequence[Shard], numbers: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        self._shards, self._numbers, self._offsets, self._lengths = shards, numbers, offsets, lengths
        self._open = lru_cache(OPEN_FILES)(lambda number: shards[number].open())

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> StoredImages: ...
    def __getitem__(self, index: int | slice) -> bytes | StoredImages:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._read(int(self._numbers[index]), int(self._offsets[index]), int(self._lengths[index]))

    def __iter__(self) -> Iterator[bytes]:
        return map(self._read, self._numbers.tolist(), self._offsets.tolist(), self._lengths.tolist())

    def __reduce__(self) -> tuple[type[StoredImages], tuple[object, ...]]:
        shards = [replace(shard, modified=None) for shard in self._shards]
        return StoredImages, (shards, self._numbers, self._offsets, self._lengths)

    def take(self, rows: np.ndarray) -> StoredImages:
        """The images of some rows, in their order, from the same open files."""
        taken = copy(self)
        taken._numbers, taken._offsets, taken._lengths = self._numbers[rows], self._offsets[rows], self._lengths[rows]
        return taken

    def sample_ids(self, rows: np.ndarray) -> list[str]:
        """The `sample_id` of some rows, read from their shards."""
        numbers = self._numbers[rows]
        found = np.empty(len(rows), object)
        for number in np.unique(numbers).tolist():
            path, own = self._shards[number].path, numbers == number
            places = np.searchsorted(_find(path)[1], self._offsets[rows[own]])
            found[own] = pq.read_table(path, columns=["sample_id"])["sample_id"].take(places).to_pylist()
        return found.tolist()

    def _read(self, number: int, offset: int, length: int) -> bytes:
        file = self._open(number)  # held by this name: what the cache drops meanwhile stays open
        image = os.pread(file.fileno(), length, offset)
        if len(image) != length:
            raise UserError(f"{self._shards[number].path} is cut short: `dvc checkout` brings it back.")
        return image


def stored_images(tables: Sequence[Path]) -> StoredImages:
    """All images of some face tables, in the order in which `read_table` gives the rows.

    Raises:
        UserError: a table is missing or damaged.
    """
    return shard_images([path for table in tables for path in table_shards(table)])


def shard_images(paths: Sequence[Path]) -> StoredImages:
    """All images of some shards, in the order in which they were written.

    Raises:
        UserError: one is missing or damaged.
    """
    shards, offsets, lengths = zip(*map(_find, paths), strict=True)
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [len(own) for own in offsets])
    return StoredImages(shards, numbers, np.concatenate(offsets), np.concatenate(lengths))


def _find(path: Path) -> tuple[Shard, np.ndarray, np.ndarray]:
    """A shard, and the offset and length in bytes of each image in it.

    The images of a row group are the values of a single page (see `write_table`), each after its length, and the
    page ends where the column does: so the last image ends there, and the one before it where that begins.
    """
    try:
        with FileIO(path) as raw, pq.ParquetFile(path) as file:  # opened once: the metadata of a large shard are 10 MB
            lengths = file.read(["image_bytes"], use_threads=False)["image_bytes"].to_numpy()
            metadata = file.metadata  # its `schema` would keep it in memory, by a cycle
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            names = [groups[0].column(number).path_in_schema for number in range(metadata.num_columns)]
            chunks = [group.column(names.index("image")) for group in groups]
            ends = np.array([chunk.data_page_offset + chunk.total_compressed_size for chunk in chunks])
            rows = np.array([group.num_rows for group in groups])
            taken = np.cumsum(lengths.astype(np.int64) + LENGTH_BYTES)  # by the images up to and with each one
            offsets = np.repeat(ends - taken[np.cumsum(rows) - 1], rows) + taken - lengths
            for first in np.cumsum(rows) - rows:
                prefix = os.pread(raw.fileno(), LENGTH_BYTES, int(offsets[first]) - LENGTH_BYTES)
                if int.from_bytes(prefix, "little") != lengths[first]:
                    raise ValueError("its images do not lie as masm writes them")
            return Shard(path, *_state(raw)), offsets, lengths
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error}): `dvc checkout` brings the stored one back.") from None


def _state(file: FileIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def decode(images: Images) -> torch.Tensor:
    """Images of one size as a (n, 3, H, W) uint8 RGB tensor, in memory pixel by pixel as they were decoded.

    Raises:
        UserError: one of them is damaged or of another size; none is ever left out or replaced.
    """
    if isinstance(images, DecodedImages):
        return images.pixels()
    batch: np.ndarray | None = None
    for index, image in enumerate(images):
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB) if image else None
        if pixels is None:
            raise UserError(f"a stored frame with sha256 {sha256(image)} is damaged: `dvc checkout` brings it back.")
        if batch is None:
            batch = np.empty((len(images), *pixels.shape), np.uint8)
        if pixels.shape != batch.shape[1:]:
            raise UserError(
                f"a stored frame with sha256 {sha256(image)} has {pixels.shape[1]} x {pixels.shape[0]} pixels, others "
                f"{batch.shape[2]} x {batch.shape[1]}: ingest all tables with the same crop.size."
            )
        batch[index] = pixels
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def pick(images: Images, rows: np.ndarray) -> Images:
    """The images of some rows, in their order."""
    if isinstance(images, (StoredImages, DecodedImages)):
        return images.take(rows)
    return [images[row] for row in rows.tolist()]


def sample_ids(images: Images, rows: np.ndarray) -> list[str]:
    """The `sample_id` of some rows of face tables, for a message: they are looked up; the numbers of other images."""
    if isinstance(images, DecodedImages):
        return images.take(rows).sample_ids()
    return images.sample_ids(rows) if isinstance(images, StoredImages) else [str(row) for row in rows.tolist()]


def decoded(images: Images, batches: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
    """`decode` of each batch of rows, in order, ahead of the caller (`ahead`).

    For a GPU the pixels come in page-locked memory, out of which they are copied while the caller goes on.

    Raises:
        UserError: as for `decode`, when it is the damaged batch's turn.
    """
    pinned = torch.cuda.is_available()

    def load(rows: np.ndarray) -> torch.Tensor:
        pixels = decode(pick(images, rows))
        return pixels.pin_memory() if pinned else pixels

    yield from (pixels for _, pixels in ahead(load, batches))


def ahead(load: Callable[[Item], Loaded], items: Iterable[Item]) -> Iterator[tuple[Item, Loaded]]:
    """Each item with what is loaded of it, in order, by as many threads as torch has, ahead of the caller.

    Each thread has an item to itself and one more waits, so that memory holds a few, however many there are.

    Raises:
        Exception: what `load` raised, when it is the item's turn.
    """
    threads = torch.get_num_threads()
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > threads:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:  # also where the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(count: int, batch_size: int) -> Iterator[np.ndarray]:
    """The rows 0 to `count` - 1 in batches; the last holds what is left."""
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count))
