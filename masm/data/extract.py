"""From a video to the crops of one face: sample frames, find faces, follow them, choose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masm.data.faces import CropProfile


@dataclass(frozen=True)
class FaceFrame:
    """One frame's crop of the chosen face.

    Attributes:
        frame_index: of the frame in the source video.
        track_id: of the face among those of the video, in the order of their appearance.
        image: (size, size, 3) uint8 RGB, the crop.
        box: (4,) float32, the face box in the frame: x, y, width, height in pixels.
        landmarks: (5, 2) float32 pixels of the frame, or None where the detector gives none.
        mask: (size, size) uint8, the forgery mask in the crop; None where the clip has none.
    """

    frame_index: int
    track_id: int
    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray | None
    mask: np.ndarray | None


@dataclass(frozen=True)
class FrameFailure:
    """A sampled frame without a crop: its outcome ("unreadable" or "no face") and the reason."""

    frame_index: int
    outcome: str
    reason: str


@dataclass(frozen=True)
class Extraction:
    """What became of the sampled frames of a clip, each in one of the two lists, in frame order."""

    frames: list[FaceFrame]
    failures: list[FrameFailure]


def extract(
    clip_files: Sequence[Path], masks: Sequence[Path], profile: CropProfile, weights: Path | None
) -> Extraction:
    """Cut one face out of the frames of a clip.

    Args:
        clip_files: one video file, or the clip's frame images in frame order.
        masks: forgery masks of the frames, a video file or images; empty for none.
        profile: how many frames are taken, and how faces are found and cut out.
        weights: the YuNet file, where the profile names YuNet.

    Raises:
        Unusable: the whole clip is "unreadable", "too short", or has "no face".
        UserError: `weights` is not the profile's YuNet file.
    """
    raise NotImplementedError
