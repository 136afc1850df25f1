"""From a video to the crops of one face: sample frames, find faces, follow them, choose one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from masm.data.faces import CropProfile, Detection, FaceCropper
from masm.data.images import MOST_PIXELS, ImageError
from masm.data.importers.photograph import Unusable
from masm.data.tracking import choose_track, track_faces
from masm.data.video import Frames, Video, open_frames, spread

MASKED = 128
"""Grey from which on a pixel of a forgery mask counts as forged; a compressed mask is not black where it was."""


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
        seconds: when it is shown, from the first frame on; None where the clip does not say it.
    """

    frame_index: int
    track_id: int
    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray | None
    mask: np.ndarray | None
    seconds: float | None = None


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
    """Cut one face out of the frames of a clip: the one under the masks, else the one that is seen longest.

    Args:
        clip_files: one video file, or the clip's frame images in frame order.
        masks: forgery masks, a video file or images with the frames' numbers; empty for none.
        profile: how many frames are taken, and how faces are found and cut out.
        weights: the YuNet file, where the profile names YuNet.

    Raises:
        Unusable: the whole clip is "unreadable", "too short" (a video file of fewer frames than the profile
            takes) or has "no face".
        UserError: `weights` is not the profile's YuNet file, or PyAV is not installed.
    """
    return extract_with(_cropper(profile, weights), clip_files, masks, profile.frames or 1)


def extract_with(
    cropper: FaceCropper,
    clip_files: Sequence[Path],
    masks: Sequence[Path] = (),
    least_frames: int = 1,
    max_pixels: int = MOST_PIXELS,
) -> Extraction:
    """`extract` with a cropper that is there already.

    A video file of fewer than `least_frames` is "too short"; frames of more than `max_pixels` are not decoded.
    """
    profile = cropper.profile
    with closing(open_frames(clip_files, max_pixels)) as clip, closing(open_frames(masks)) as cover:
        if isinstance(clip, Video) and len(clip.numbers) < least_frames:
            raise Unusable("too short", f"{len(clip.numbers)} frames: the profile takes {profile.frames}")
        numbers = [clip.numbers[place] for place in spread(len(clip.numbers), profile.frames)]
        samples, failures = _sample(cropper, clip, cover, numbers)
    if not samples:
        raise Unusable("unreadable", failures[0].reason)
    boxes = [[face.detection.box for face in sample.faces] for sample in samples]
    overlaps = [[face.overlap for face in sample.faces] for sample in samples]
    tracks = track_faces(boxes)
    if not tracks:
        raise Unusable("no face", f"{profile.detector} found no face in {len(samples)} frames")
    if any(sample.masked for sample in samples) and not any(map(any, overlaps)):
        raise Unusable("no face", f"none of the faces that {profile.detector} found lies under the forgery mask")
    chosen = choose_track(tracks, boxes, overlaps)
    frames = []
    for place, sample in enumerate(samples):
        if place not in tracks[chosen]:
            failures.append(FrameFailure(sample.number, "no face", f"{profile.detector} did not find the face"))
            continue
        face = sample.faces[tracks[chosen][place]]
        if isinstance(face.crop, ImageError):
            failures.append(FrameFailure(sample.number, "no face", str(face.crop)))
            continue
        (image, mask), found = face.crop, face.detection
        frames.append(FaceFrame(sample.number, chosen, image, found.box, found.landmarks, mask, sample.seconds))
    if not frames:
        raise Unusable("no face", f"the face cannot be cut out: {failures[-1].reason}")
    return Extraction(frames, sorted(failures, key=lambda failure: failure.frame_index))


@dataclass(frozen=True)
class _Face:
    """A face of a frame, already cut out: frames are too large to be kept until it is known who is chosen.

    Its crop and that of the mask, or why there is none: who stands at the edge must not cost the others the frame.
    """

    detection: Detection
    crop: tuple[np.ndarray, np.ndarray | None] | ImageError
    overlap: float


@dataclass(frozen=True)
class _Sample:
    number: int
    faces: list[_Face]
    masked: bool
    seconds: float | None = None


@cache
def _cropper(profile: CropProfile, weights: Path | None) -> FaceCropper:
    """Loaded once in each process, which has one thread."""
    return FaceCropper(profile, weights)


def _sample(
    cropper: FaceCropper, clip: Frames, cover: Frames, numbers: Sequence[int]
) -> tuple[list[_Sample], list[FrameFailure]]:
    """Find and cut out all faces of the frames with these numbers."""
    masks = cover.read([number for number in numbers if number in cover.numbers])
    samples, failures = [], []
    for number, picture in clip.read(numbers):
        mask = next(masks)[1] if number in cover.numbers else None
        try:
            sample = _find_faces(cropper, number, _sound(picture), None if mask is None else _sound(mask))
            samples.append(replace(sample, seconds=clip.seconds(number)))
        except ImageError as error:
            failures.append(FrameFailure(number, "unreadable", str(error)))
    return samples, failures


def _sound(picture: np.ndarray | ImageError) -> np.ndarray:
    if isinstance(picture, ImageError):
        raise picture
    return picture


def _find_faces(cropper: FaceCropper, number: int, picture: np.ndarray, mask: np.ndarray | None) -> _Sample:
    found = cropper.detect(picture)
    if mask is None:
        return _Sample(number, [_Face(face, _cut(cropper, face, picture, None), 0.0) for face in found], masked=False)
    grey = cv2.resize(cv2.cvtColor(mask, cv2.COLOR_RGB2GRAY), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    forged = grey >= MASKED
    faces = [_Face(face, _cut(cropper, face, picture, grey), _overlap(face.box, forged)) for face in found]
    return _Sample(number, faces, masked=bool(forged.any()))


def _cut(
    cropper: FaceCropper, face: Detection, picture: np.ndarray, grey: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None] | ImageError:
    try:
        return cropper.cut(picture, face), None if grey is None else cropper.cut(grey, face)
    except ImageError as error:
        return error


def _overlap(box: np.ndarray, forged: np.ndarray) -> float:
    """Intersection over union of a box and a mask (H, W) of bool."""
    left, top = np.maximum(np.rint(box[:2]), 0).astype(int)
    right, bottom = np.maximum(np.rint(box[:2] + box[2:]), 0).astype(int)
    inside = int(forged[top:bottom, left:right].sum())
    return inside / (float(box[2] * box[3]) + int(forged.sum()) - inside)
