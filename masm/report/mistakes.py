"""The hardest errors as thumbnails: shown only where the setting `evaluate.thumbnails` allows pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from masm.data.images import decode_image
from masm.data.stored import stored_images
from masm.data.table import read_table
from masm.evaluation import VIDEO, scored_frames, video_means

SIDE = 112
QUALITY = 85


@dataclass(frozen=True)
class Mistake:
    """A video that was decided wrongly, and its frame of the most wrong score as a base64-encoded JPEG."""

    dataset: str
    method: str
    video_id: str
    label: int
    score: float
    jpeg: str


def hardest_mistakes(scores: pd.DataFrame, threshold: float, count: int, tables: Mapping[str, Path]) -> list[Mistake]:
    """The reals of the highest video scores and the fakes of the lowest, of those that were decided wrongly.

    Args:
        scores: Scores, with sample_id.
        threshold: a video is called fake where its score is at least this.
        count: how many reals, and how many fakes, at most.
        tables: the face table's folder by dataset.
    """
    frames = scored_frames(scores)
    videos = video_means(frames)
    wrong = videos[(videos["score"] >= threshold) != (videos["label"] == 1)]
    reals = wrong[wrong["label"] == 0].nlargest(count, "score")
    fakes = wrong[wrong["label"] == 1].nsmallest(count, "score")
    return [_mistake(frames, video, tables) for video in pd.concat([reals, fakes]).to_dict("records")]


def _mistake(frames: pd.DataFrame, video: Mapping[Any, Any], tables: Mapping[str, Path]) -> Mistake:
    own = frames[(frames[VIDEO] == [video[name] for name in VIDEO]).all(axis=1)].sort_values("score")
    worst = own["sample_id"].iloc[0 if video["label"] else -1]
    jpeg = _thumbnail(_stored_image(tables[video["dataset"]], str(worst)))
    return Mistake(**{name: video[name] for name in (*VIDEO, "label", "score")}, jpeg=jpeg)


def _stored_image(table: Path, sample_id: str) -> bytes:
    names = read_table(table, ["sample_id"])["sample_id"].to_numpy(zero_copy_only=False)
    return stored_images([table])[int(np.flatnonzero(names == sample_id)[0])]


def _thumbnail(image: bytes) -> str:
    pixels = decode_image(image)
    scale = SIDE / max(pixels.shape[:2])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return base64.b64encode(encoded.tobytes()).decode()
