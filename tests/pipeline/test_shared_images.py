"""Decoded images in Ray's object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from masm.cluster import connected
from masm.data.decoded import DecodedImages
from masm.data.frames import Frames, load_frames
from masm.data.stored import StoredImages, decode, pick, sample_ids
from masm.data.table import write_table
from masm.errors import UserError
from masm.settings import Ray
from pipelines import shared_images
from pipelines.shared_images import share
from tests.data.tables import png, row

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Frames of two tables, of which the train split leaves some out."""
    folder = tmp_path_factory.mktemp("tables")
    for name, videos in (("a", 20), ("b", 13)):
        rows = [
            row(name, method, f"{video}", frame, png(video, frame, ord(name)), split=("train", "val")[video % 5 == 0])
            for video in range(videos)
            for method in ("real", "swap")
            for frame in range(3)
        ]
        write_table(folder / name, rows, [])
    return load_frames([folder / "a", folder / "b"], "train", frames_per_video=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray of its own."""
    with connected(Ray(address=None, storage="unused"), cpus=2):
        yield


@ray.remote(num_cpus=0)
def look(frames: Frames, rows: list[int]) -> tuple[torch.Tensor, bool, list[str]]:
    """Some pixels as another process sees them, whether it holds them itself, and their names."""
    chosen = np.array(rows)
    images = frames.images
    pixels = decode(pick(images, chosen))
    assert isinstance(images, DecodedImages)
    return pixels, images.take(chosen)._pixels[0].flags["OWNDATA"], sample_ids(images, chosen)


def test_other_processes_see_the_stored_pixels(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_images, "BLOCK_BYTES", 10 * 8 * 8 * 3)  # so that there are several blocks
    (shared,) = share([frames], fetch=lambda: None)
    assert isinstance(shared.images, DecodedImages)
    assert len(shared) == len(frames) > 50
    rows = np.random.default_rng(0).permutation(len(frames))
    pixels, copied, names = ray.get(look.remote(shared, rows.tolist()))
    assert torch.equal(pixels, decode(pick(frames.images, rows)))
    assert not copied
    assert names == sample_ids(frames.images, rows)
    assert np.array_equal(shared.labels, frames.labels)


def test_tables_are_fetched_where_they_are_read(frames: Frames, tmp_path: Path) -> None:
    share([frames], fetch=(tmp_path / "fetched").touch)
    assert (tmp_path / "fetched").exists()


@pytest.mark.parametrize(("parts", "fits"), [(1, True), (2, False)])
def test_what_does_not_fit_in_all_is_left_in_the_tables(
    frames: Frames, parts: int, fits: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = 3 * 8 * 8 * len(frames)
    monkeypatch.setattr(shared_images, "STORE_SHARE", 1.5 * one / shared_images.least_store())
    found = share([frames] * parts, fetch=lambda: None)
    assert all(isinstance(part.images, DecodedImages if fits else StoredImages) for part in found)
    said = " ".join(capsys.readouterr().err.split())
    assert (f"{parts * len(frames)} decoded images would take" in said) != fits
    assert ("every worker reads and decodes its own" in said) != fits


def test_a_damaged_image_is_named(frames: Frames) -> None:
    images = [png(number) for number in range(30)]
    images[17] = images[17][:40]
    damaged = replace(frames, images=images)
    with pytest.raises(UserError, match=r"a stored frame with sha256 [0-9a-f]{64} is damaged"):
        share([damaged], fetch=lambda: None)


def test_images_of_two_sizes_are_named(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_images, "BLOCK_BYTES", 10 * 8 * 8 * 3)  # each block is of one size
    mixed = replace(frames, images=[png(number, side=8 if number < 20 else 16) for number in range(40)])
    with pytest.raises(UserError, match=r"has 16 x 16 pixels, others 8 x 8: ingest all tables with"):
        share([mixed], fetch=lambda: None)
