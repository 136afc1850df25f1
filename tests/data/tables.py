"""Face tables of noise, for tests and benchmarks that need rows but no faces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from masm.data.table import SCHEMA, SCHEMA_VERSION, sha256, write_table
from masm.settings import Settings, load_settings
from tests.conftest import ROOT
from tests.pipeline.workspace import edit

Row = dict[str, Any]
FORGED = {"camera": "compact", "forgeries": ["swap"]}
DATASETS: dict[str, dict[str, Any]] = {
    "learn": {"role": "train", **FORGED},
    "tune": {"role": "validate", **FORGED},
    "judge": {"role": "test", **FORGED},
    "again": {"role": "test", **FORGED},
}
SPLITS = {"learn": ("train", "val"), "tune": ("val",), "judge": ("test",), "again": ("test",)}
RECORDINGS, FRAMES = 4, 2


def png(*seed: int, side: int = 8) -> bytes:
    """An image of noise that no other seed gives."""
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))[1].tobytes()


def no_landmarks(count: int) -> np.ndarray:
    """Those of frames that have none."""
    return np.full((count, 5, 2), np.nan, np.float16)


def row(dataset: str, method: str, video: str, frame: int, image: bytes, **columns: Any) -> Row:
    """A frame's row of a face table; `columns` go before what is made up here."""
    return dict.fromkeys(SCHEMA.names) | {
        "sample_id": f"{dataset}/{method}/{video}/{frame}",
        "dataset": dataset,
        "split": "train",
        "label": int(method != "real"),
        "method": method,
        "video_id": video,
        "frame_index": frame,
        "source_clip": video.split("_")[0],  # FaceForensics++: a_b shows a
        "bbox": [0.0, 0.0, 8.0, 8.0],
        "image": image,
        "sha256": sha256(image),
        "schema_version": SCHEMA_VERSION,
        **columns,
    }


def named_row(dataset: str, split: str, recording: str, method: str, frame: int) -> Row:
    """A frame whose hashes are those of its name, so that no two look alike; every column that must be is filled."""
    digest = hashlib.sha256(f"{dataset}/{method}/{recording}/{frame}".encode()).hexdigest()
    columns = {
        "split": split,
        "family": method,
        "track_id": 0,
        "sources": [recording],
        "source_clip": recording,
        "identity": f"person of {recording}",
        "compression": "jpeg-90",
        "width": 64,
        "height": 64,
        "attributes": [("camera", "compact")],
        "sha256": digest,
        "phash": digest[-16:],
        "profile": "p",
    }
    return row(dataset, method, recording, frame, digest.encode(), **columns)


def sound_rows(dataset: str) -> list[Row]:
    """Real and fake frames of the recordings of a dataset; judge and again have the same recordings."""
    prefix = "judge" if dataset == "again" else dataset
    return [
        named_row(dataset, split, f"{prefix}-{split}-{number}", method, frame)
        for split in SPLITS[dataset]
        for number in range(RECORDINGS)
        for method in ("real", "swap")
        for frame in range(FRAMES)
    ]


def make_settings(folder: Path, datasets: Mapping[str, Any] = DATASETS, **changes: Any) -> Settings:
    """The shipped settings with other datasets; `__` in a name stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    edit(folder / "params.yaml", {"datasets": dict(datasets), **dotted})
    return load_settings(folder / "params.yaml")


def write_tables(settings: Settings, change: Callable[[Row], Row | None] = lambda found: {}) -> None:
    """Write sound tables, each row with the columns that `change` gives in place of its own; None leaves it out."""
    for dataset in settings.datasets:
        changed = [(found, change(found)) for found in sound_rows(dataset)]
        write_table(settings.table(dataset), [found | new for found, new in changed if new is not None], [])
