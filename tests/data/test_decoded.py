from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from masm.data.decoded import DecodedImages, block_of
from masm.data.stored import decode, decoded, pick, sample_ids
from tests.data.tables import png

ENCODED = [png(number) for number in range(11)]


def load_blocks() -> list[pa.Table]:
    """Eleven images in blocks of 4, 1 and 6, of which the last is a slice in two chunks."""
    first, second = (block_of(decode(ENCODED[a:b]), [f"id{n}" for n in range(a, b)]) for a, b in ((0, 4), (4, 5)))
    rest = block_of(decode(ENCODED[3:]), [f"id{n}" for n in range(3, 11)])
    return [first, second, pa.concat_tables([rest.slice(2, 1), rest.slice(3)])]


def test_any_rows_have_the_pixels_that_decoding_gives() -> None:
    images = pickle.loads(pickle.dumps(DecodedImages(load_blocks, np.arange(11))))
    assert len(images) == 11
    rows = np.random.default_rng(0).integers(0, 11, 40)
    found, expected = decode(pick(images, rows)), decode(pick(ENCODED, rows))
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    some = images.take(np.array([7, 2, 5]))
    assert torch.equal(next(decoded(some, [np.array([2, 0])])), decode([ENCODED[5], ENCODED[7]]))
    assert sample_ids(some, np.array([1, 0])) == ["id2", "id7"]


def test_what_is_read_is_the_blocks_own_memory() -> None:
    """No copy of the blocks is made; what is handed out is one, so that nobody writes into them."""
    blocks = load_blocks()
    images = DecodedImages(lambda: blocks, np.arange(11))
    start = blocks[0]["pixels"].chunk(0).buffers()[1].address
    assert images._pixels[0].__array_interface__["data"][0] == start
    pixels = images.take(np.array([0])).pixels()
    pixels.zero_()
    assert images.take(np.array([0])).pixels().any()


def test_rows_outside_of_the_blocks_are_an_error() -> None:
    with pytest.raises(IndexError):
        DecodedImages(load_blocks, np.array([11])).pixels()
