from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from masm.data import table
from masm.data.stored import StoredImages, decode, decoded, in_order, sample_ids, stored_images
from masm.data.table import read_table, write_table
from masm.errors import UserError
from tests.data.tables import png, row


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two tables of images of several sizes, one of them with several shards of several row groups."""
    monkeypatch.setattr(table, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(table, "ROW_GROUP", 7)
    for name, count in (("one", 100), ("two", 3)):
        images = (
            png(len(name), i, side=int(side)) for i, side in enumerate(np.random.default_rng(0).integers(4, 40, count))
        )
        write_table(tmp_path / name, (row(name, "real", str(i), 0, image) for i, image in enumerate(images)), [])
    assert len(table.table_shards(tmp_path / "one")) > 2
    return [tmp_path / "one", tmp_path / "two"]


def test_each_image_is_found_where_parquet_has_it(tables: list[Path]) -> None:
    expected = [image for folder in tables for image in read_table(folder, ["image"])["image"].to_pylist()]
    images = stored_images(tables)
    assert list(images) == expected
    assert list(images[95:102]) == expected[95:102]
    chosen = np.array([102, 0, 55, 55])
    assert list(images.take(chosen)) == [expected[i] for i in chosen]


def test_rows_are_named_by_their_samples(tables: list[Path]) -> None:
    expected = [name for folder in tables for name in read_table(folder, ["sample_id"])["sample_id"].to_pylist()]
    images = stored_images(tables)
    rows = np.array([101, 0, 55, 55, 99, 7])
    assert sample_ids(images, rows) == [expected[row] for row in rows]
    taken = images.take(np.arange(50, 103))
    assert sample_ids(taken, np.array([52, 5])) == [expected[102], expected[55]]
    assert sample_ids(list(images), np.array([3, 1])) == ["3", "1"]


def test_a_copy_in_another_process_and_many_threads_read_the_same(tables: list[Path]) -> None:
    images = stored_images(tables)
    copy = pickle.loads(pickle.dumps(images))
    order = np.random.default_rng(1).integers(0, len(images), 500).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(copy.__getitem__, order)) == [images[i] for i in order]


def test_a_copy_reads_another_nodes_files_if_they_are_of_the_same_size(tables: list[Path]) -> None:
    """Where DVC has fetched the same table at another time."""
    images = stored_images(tables[1:])
    sent, expected = pickle.dumps(images), list(images)
    (shard,) = table.table_shards(tables[1])
    os.utime(shard, (1, 1))
    assert list(pickle.loads(sent)) == expected
    with open(shard, "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="was replaced while it was in use"):
        pickle.loads(sent)[0]


def test_more_shards_than_are_kept_open(tables: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masm.data.stored.OPEN_FILES", 1)
    assert list(stored_images(tables)) == list(stored_images(tables[:1])) + list(stored_images(tables[1:]))


def test_a_shard_that_was_replaced_gives_no_other_image(tables: list[Path]) -> None:
    images = stored_images(tables[1:])
    shard = table.table_shards(tables[1])[0]
    data = shard.read_bytes()
    shard.write_bytes(b"\0" + data)
    with pytest.raises(UserError, match=r"faces-00000.parquet was replaced while it was in use"):
        images[1]
    shard.unlink()
    with pytest.raises(UserError, match=r"faces-00000.parquet cannot be read \(No such file"):
        images[1]


def test_a_shard_that_is_cut_short_gives_no_part_of_an_image(tables: list[Path]) -> None:
    images = stored_images(tables[1:])
    first = images[0]
    shard = table.table_shards(tables[1])[0]
    shard.write_bytes(shard.read_bytes()[:100])  # the same file, which is open
    with pytest.raises(UserError, match="is cut short"):
        images[2]
    with pytest.raises(UserError, match="is damaged"):
        stored_images(tables[1:])
    assert first == png(3, 0, side=int(np.random.default_rng(0).integers(4, 40, 3)[0]))


def test_images_that_lie_otherwise_are_refused(tables: list[Path]) -> None:
    """A table that another program wrote: each image may be whole, but not where we would look for it."""
    shard = table.table_shards(tables[1])[0]
    pq.write_table(pq.read_table(shard), shard, compression="none", data_page_size=10)
    with pytest.raises(UserError, match="its images do not lie as masm writes them"):
        stored_images(tables[1:])


def test_a_table_keeps_its_images_end_to_end(tables: list[Path]) -> None:
    """The little-endian length before each, and nothing between them."""
    images = stored_images(tables[1:])
    stored = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    assert table.table_shards(tables[1])[0].read_bytes().count(stored) == 1


def test_decode_gives_rgb() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    assert decode([cv2.imencode(".png", red)[1].tobytes()])[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_damaged_frame_is_never_left_out_or_replaced() -> None:
    """Defect 5 of the reference benchmark: sample 0 in its place."""
    good = [png(i) for i in range(6)]
    for damaged in (b"", b"no image", good[3][:40]):
        with pytest.raises(UserError, match=r"sha256 [0-9a-f]{64} is damaged"):
            decode([*good[:3], damaged, *good[4:]])
    images = [*good[:3], b"no image", *good[4:]]
    batches = decoded(images, in_order(6, 3))
    assert torch.equal(next(batches), decode(good[:3]))
    with pytest.raises(UserError, match="is damaged"):
        next(batches)


def test_frames_of_two_sizes_do_not_make_a_batch() -> None:
    with pytest.raises(UserError, match="has 1 x 1 pixels, others 8 x 8"):
        decode([png(0), png(1, side=1)])


@pytest.mark.parametrize("threads", [1, 3])
def test_decoding_ahead_gives_the_same_batches_in_the_same_order(threads: int) -> None:
    images = [png(i) for i in range(50)]
    order = [np.random.default_rng(i).integers(0, 50, 1 + i % 5) for i in range(20)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batches = list(decoded(images, order))
    finally:
        torch.set_num_threads(before)
    assert len(batches) == 20
    for rows, batch in zip(order, batches, strict=True):
        assert torch.equal(batch, decode([images[i] for i in rows]))


def test_few_batches_are_read_ahead() -> None:
    read: list[int] = []

    class Counted(list[bytes]):
        def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
            read.append(index)
            return super().__getitem__(index)

    batches = decoded(Counted(png(i) for i in range(400)), in_order(400, 4))
    next(batches)
    batches.close()
    assert 4 <= len(read) <= 4 * (torch.get_num_threads() + 1)


def test_in_order_leaves_no_tail() -> None:
    assert [rows.tolist() for rows in in_order(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_order(0, 3)) == []


def test_stored_images_hold_no_bytes(tables: list[Path]) -> None:
    images = stored_images(tables)
    assert isinstance(images, StoredImages)
    assert len(pickle.dumps(images)) < 0.2 * sum(map(len, images))
