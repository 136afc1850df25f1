"""Images that are held decoded, in memory that processes may share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from math import isqrt

import numpy as np
import pyarrow as pa
import torch

PIXELS, SAMPLE_ID = "pixels", "sample_id"


class DecodedImages:
    """Images of some rows of blocks, which lie end to end.

    A block is a table of `PIXELS`, fixed-size binary, S x S x 3 bytes of RGB row by row, and `SAMPLE_ID`. None is
    loaded before the first image is asked for; a pickled copy loads them itself.

    Args:
        load: gives the blocks.
        rows: (n,) int64 of the blocks' rows.
    """

    def __init__(self, load: Callable[[], Sequence[pa.Table]], rows: np.ndarray) -> None:
        self._load, self._rows = load, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> tuple[type[DecodedImages], tuple[object, ...]]:
        return DecodedImages, (self._load, self._rows)

    def take(self, rows: np.ndarray) -> DecodedImages:
        """The images of some rows, in their order, of the same blocks."""
        taken = copy(self)
        taken._rows = self._rows[rows]
        return taken

    def pixels(self) -> torch.Tensor:
        """A copy of all, (n, 3, S, S) uint8 RGB, in memory pixel by pixel as `masm.data.stored.decode` has them."""
        ends = np.cumsum([len(block) for block in self._pixels])
        numbers = np.searchsorted(ends, self._rows, side="right")
        batch = np.empty((len(self), *self._pixels[0].shape[1:]), np.uint8)
        for number in np.unique(numbers).tolist():
            own, block = numbers == number, self._pixels[number]
            batch[own] = block[self._rows[own] - (ends[number] - len(block))]
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def sample_ids(self) -> list[str]:
        """The `sample_id` of each of them."""
        names = pa.chunked_array([chunk for block in self._blocks for chunk in block[SAMPLE_ID].chunks])
        return names.take(pa.array(self._rows)).to_pylist()

    @cached_property
    def _blocks(self) -> Sequence[pa.Table]:
        return self._load()

    @cached_property
    def _pixels(self) -> list[np.ndarray]:
        """The pixels (b, S, S, 3) of each block, where they lie."""
        return [_view(chunk) for block in self._blocks for chunk in block[PIXELS].chunks]


def _view(images: pa.FixedSizeBinaryArray) -> np.ndarray:
    width = images.type.byte_width
    side = isqrt(width // 3)
    values = np.frombuffer(images.buffers()[1], np.uint8)
    return values[images.offset * width : (images.offset + len(images)) * width].reshape(-1, side, side, 3)


def block_of(pixels: torch.Tensor, sample_ids: Sequence[str]) -> pa.Table:
    """The block of images (b, 3, S, S) uint8 RGB that lie in memory pixel by pixel."""
    bytes_ = pixels.permute(0, 2, 3, 1).numpy().reshape(len(pixels), -1)
    width = pa.binary(bytes_.shape[1])
    values = pa.FixedSizeBinaryArray.from_buffers(width, len(bytes_), [None, pa.py_buffer(bytes_)])
    return pa.table({PIXELS: values, SAMPLE_ID: pa.array(sample_ids, pa.string())})
