from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from masm.data import table
from masm.data.table import SCHEMA, perceptual_hash, read_failures, read_table, sha256, write_table
from masm.errors import UserError


def row(index: int, split: str = "train", size: int = 10) -> dict[str, Any]:
    image = bytes([index % 256]) * size
    return {
        "sample_id": f"set/real/video-{index}/0",
        "dataset": "set",
        "split": split,
        "label": 0,
        "method": "real",
        "family": "real",
        "video_id": f"video-{index}",
        "frame_index": 0,
        "track_id": 0,
        "sources": [f"video-{index}"],
        "source_clip": f"video-{index}",
        "identity": f"person-{index // 2}",
        "compression": "jpeg-90",
        "width": 64,
        "height": 64,
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "landmarks": None,
        "crop_landmarks": None,
        "mask": None,
        "forge_parameters": None,
        "attributes": [("camera", "compact")],
        "image": image,
        "image_bytes": size,
        "sha256": sha256(image),
        "phash": "0" * 16,
        "profile": "p",
        "schema_version": table.SCHEMA_VERSION,
    }


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)]
    write_table(tmp_path / "set", rows, [])
    read = read_table(tmp_path / "set")
    assert read.schema.equals(SCHEMA)
    assert read.to_pylist() == rows


def test_shards_are_cut_by_image_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SHARD_BYTES", 25)
    write_table(tmp_path / "set", (row(i) for i in range(7)), [])
    assert len(table.table_shards(tmp_path / "set")) == 3
    assert read_table(tmp_path / "set", ["video_id"])["video_id"].to_pylist() == [f"video-{i}" for i in range(7)]


def test_one_split_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "set", [row(0), row(1, "val"), row(2)], [])
    assert read_table(tmp_path / "set", ["video_id"], "val")["video_id"].to_pylist() == ["video-1"]


def test_failures_are_kept(tmp_path: Path) -> None:
    failure = {
        "dataset": "set",
        "split": "train",
        "label": 0,
        "method": "real",
        "video_id": "broken",
        "frame_index": None,
        "identity": "person",
        "outcome": "unreadable",
        "reason": "empty file",
    }
    frame = {**failure, "video_id": "video-0", "frame_index": 3}
    assert write_table(tmp_path / "set", [row(0), row(1)], [failure, frame]) == {"ok": 2, "unreadable": 1}
    assert read_failures(tmp_path / "set").to_pylist() == [failure, frame]
    assert json.loads((tmp_path / "set" / "outcomes.json").read_text()) == {"ok": 2, "unreadable": 1}


def test_a_write_that_fails_leaves_the_former_table(tmp_path: Path) -> None:
    write_table(tmp_path / "set", [row(0)], [])

    def broken() -> Any:
        yield row(1)
        raise RuntimeError("killed half way")

    with pytest.raises(RuntimeError):
        write_table(tmp_path / "set", broken(), [])
    assert read_table(tmp_path / "set", ["video_id"])["video_id"].to_pylist() == ["video-0"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_missing_damaged_and_foreign_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no face table: run `dvc repro ingest@set`"):
        read_table(tmp_path / "set")
    write_table(tmp_path / "set", [{**row(0), "schema_version": 99}], [])
    with pytest.raises(UserError, match="schema version 99"):
        read_table(tmp_path / "set")
    shard = tmp_path / "set" / "faces-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        read_table(tmp_path / "set")


def test_perceptual_hash_tells_images_apart_but_not_their_copies() -> None:
    rng = np.random.default_rng(0)
    images = [cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 5) for _ in range(2)]
    noisy = np.clip(images[0] + rng.normal(0, 2, images[0].shape), 0, 255).astype(np.uint8)

    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return (int(perceptual_hash(a), 16) ^ int(perceptual_hash(b), 16)).bit_count()

    assert len(perceptual_hash(images[0])) == 16
    assert distance(images[0], noisy) < 16
    assert distance(images[0], images[1]) > 16
