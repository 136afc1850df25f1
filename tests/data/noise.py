"""Face tables of noise, for tests and benchmarks that need rows but no faces."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from masm.data.table import SCHEMA, SCHEMA_VERSION, sha256


def png(*seed: int, side: int = 8) -> bytes:
    """An image of noise that no other seed gives."""
    return cv2.imencode(".png", np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))[1].tobytes()


def row(dataset: str, method: str, video: str, frame: int, image: bytes, **columns: Any) -> dict[str, Any]:
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
