"""What every way of ingest gives: rows of a face table, and of its failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from masm.data.faces import CropProfile, Jitter, crop_landmarks
from masm.data.table import SCHEMA_VERSION, perceptual_hash, sha256


@dataclass(frozen=True)
class Outcome:
    """What became of a task: rows of the face table, and of its failures."""

    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]


class Task(Protocol):
    """The smallest part of a dataset that is ingested on its own; it travels between processes."""

    def run(self) -> Outcome:
        """Find, make and cut out its faces."""


def image_columns(image: np.ndarray, profile: CropProfile) -> dict[str, Any]:
    """The columns that follow from a crop, (H, W, 3) uint8 RGB, and from how it was cut out."""
    encoded = encode(image)
    return {
        "width": image.shape[1],
        "height": image.shape[0],
        "image": encoded,
        "sha256": sha256(encoded),
        "phash": perceptual_hash(image),
        "profile": profile.hash,
        "schema_version": SCHEMA_VERSION,
    }


def landmark_columns(
    box: np.ndarray, profile: CropProfile, jitter: Jitter | None, landmarks: np.ndarray | None
) -> dict[str, list[float] | None]:
    """The columns of a face's landmarks: in its photograph, and in its crop."""
    inside = crop_landmarks(box, profile, jitter, landmarks)
    return {
        "landmarks": None if landmarks is None else landmarks.ravel().tolist(),
        "crop_landmarks": None if inside is None else inside.ravel().tolist(),
    }


def encode(image: np.ndarray) -> bytes:
    """PNG of (H, W, 3) RGB or (H, W) grey: lossless, so that the crop adds no trace of its own."""
    channels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", channels)[1].tobytes()
