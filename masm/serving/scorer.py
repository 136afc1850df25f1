"""From an image or a video to its verdict: what the registered model, `masm score` and `masm serve` share.

The steps are apart, so that a server can batch the middle one over requests: find the faces, compute the logits of
their crops, judge.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from masm.data.extract import extract_with
from masm.data.faces import CropProfile, Detection, FaceCropper
from masm.data.images import MOST_PIXELS, ImageError, check_pixels, decode_image
from masm.data.importers.photograph import Unusable
from masm.data.video import Video
from masm.decisions import Level, read_decisions
from masm.detector import Detector
from masm.errors import UserError
from masm.serving.results import NO_FACE, OK, Box, FaceScore, FrameResult, ImageResult, VideoResult

BATCH_SIZE = 32
MOST_PER_SECOND = 120
"""Frames of a video whose length is limited: a file may hold as many as it likes at the times that it likes."""
VIDEO_FRAMES = 32
"""Of a video, where the crop profile takes all: a request must not hold hours of film."""


@dataclass(frozen=True)
class FoundFace:
    """A face of an image: its box, the face detector's confidence, and its crop (S, S, 3) uint8 RGB."""

    box: Box
    confidence: float
    crop: np.ndarray


@dataclass(frozen=True)
class FoundFrame:
    """The face that a video is judged by, in one frame; `seconds` from the first frame on, None if unknown."""

    frame_index: int
    seconds: float | None
    box: Box
    crop: np.ndarray


@dataclass(frozen=True)
class Outputs:
    """What the detector says of n crops: logits (n,) float64, and shares (n, K) and embeddings (n, D) if asked for."""

    logits: np.ndarray
    shares: np.ndarray | None = None
    embeddings: np.ndarray | None = None

    def of(self, crops: slice) -> Outputs:
        """What is said of some of the crops."""
        parts = (None if values is None else values[crops] for values in (self.shares, self.embeddings))
        return Outputs(self.logits[crops], *parts)

    def share(self, index: int) -> tuple[float, ...] | None:
        """The shares of one crop."""
        return None if self.shares is None else tuple(self.shares[index].tolist())

    def embedding(self, index: int) -> np.ndarray | None:
        """The embedding of one crop."""
        return None if self.embeddings is None else self.embeddings[index]


class Scorer:
    """A detector with its face detector, ready to judge images and videos; several threads may share it.

    Args:
        folder: a registered model's, with `artifacts/` in it, or that folder itself, or a bare detector's.
        face_detector: YuNet's file, where the folder does not bring the one that the crop profile names.
        device: where the detector runs; by default a GPU if there is one.
        max_pixels: larger images, and videos of larger frames, are refused before they are decoded.

    Raises:
        UserError: the folder holds no detector, or not the face detector that its crop profile names.
    """

    def __init__(
        self,
        folder: Path,
        face_detector: Path | None = None,
        device: str | None = None,
        max_pixels: int = MOST_PIXELS,
    ) -> None:
        self.folder, beside = find_parts(folder)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.detector = Detector.load(self.folder, merged=True).to(self._device).eval()
        self.decisions = read_decisions(self.detector.card)
        profile = CropProfile(**self.detector.card["crop"])
        self.cropper = FaceCropper(replace(profile, frames=profile.frames or VIDEO_FRAMES), beside or face_detector)
        self.max_pixels = max_pixels
        self._unmerged_lock = Lock()

    def score_image(self, data: bytes | np.ndarray, shares: bool = False, embeddings: bool = False) -> ImageResult:
        """Judge an image file's bytes, or pixels (H, W, 3) uint8 RGB; with subspace shares and embeddings if asked."""
        try:
            faces = self.find_in_image(data)
        except ImageError as error:
            return ImageResult(str(error))
        return self.judge_image(faces, self.outputs([face.crop for face in faces], shares, embeddings))

    def score_video(self, path: Path, shares: bool = False, embeddings: bool = False) -> VideoResult:
        """Judge a video file by the face that is seen longest in it."""
        try:
            frames = self.find_in_video(path)
        except ImageError as error:
            return VideoResult(str(error))
        return self.judge_video(frames, self.outputs([frame.crop for frame in frames], shares, embeddings))

    def find_in_image(self, data: bytes | np.ndarray | list[Any]) -> list[FoundFace]:
        """The faces of an image, the largest first; of a file's bytes, or of pixels (see `decode`).

        Raises:
            ImageError: it cannot be used; the message is the outcome.
        """
        return self.find_faces(self.decode(data))

    def decode(self, data: bytes | np.ndarray | list[Any]) -> np.ndarray:
        """An image as (H, W, 3) uint8 RGB, upright; of a file's bytes, or of an array or nested lists of pixels.

        Raises:
            ImageError: it cannot be used; the message is the outcome.
        """
        if isinstance(data, bytes):
            return decode_image(data, self.max_pixels)
        return check_pixels(data, self.max_pixels)

    def find_faces(self, image: np.ndarray) -> list[FoundFace]:
        """The faces of an image (H, W, 3) uint8 RGB, the largest first.

        Raises:
            ImageError: faces were found, and none of them can be cut out.
        """
        found, failures = [], []
        for face in sorted(self.cropper.detect(image), key=_area, reverse=True):
            try:
                found.append(FoundFace(_box(face.box), face.confidence, self.cropper.cut(image, face)))
            except ImageError as error:
                failures.append(error)
        if failures and not found:
            raise failures[0]
        return found

    def find_in_video(self, video: bytes | Path, longest: float | None = None) -> list[FoundFrame]:
        """The face of a video that is seen longest, in frames that are spread evenly over all of it.

        Args:
            video: a file, or its bytes.
            longest: seconds that it may last; None for any number.

        Raises:
            ImageError: it cannot be used, is too long, or shows no face, or PyAV is not installed; the message is
                the outcome.
        """
        if isinstance(video, bytes):
            with tempfile.NamedTemporaryFile(prefix="masm-", suffix=".video") as file:
                file.write(video)
                file.flush()
                return self.find_in_video(Path(file.name), longest)
        try:
            if longest is not None:
                _check_length(video, longest, self.max_pixels)
            frames = extract_with(self.cropper, [video], max_pixels=self.max_pixels).frames
        except Unusable as error:
            raise ImageError(NO_FACE if error.outcome == NO_FACE else error.reason) from None
        except UserError as error:  # one video without PyAV must not end a run over thousands of images
            raise ImageError(str(error)) from None
        return [FoundFrame(frame.frame_index, frame.seconds, _box(frame.box), frame.image) for frame in frames]

    def outputs(self, crops: Sequence[np.ndarray], shares: bool = False, embeddings: bool = False) -> Outputs:
        """What the detector says of crops (S, S, 3) uint8 RGB."""
        stacked = np.stack(crops) if len(crops) else np.empty((0, 1, 1, 3), np.uint8)
        logits, features = self._forward(stacked)
        return Outputs(logits, self.shares(stacked) if shares else None, features if embeddings else None)

    def logits(self, crops: np.ndarray) -> np.ndarray:
        """Logits (n,) float64 of crops (n, S, S, 3) uint8 RGB."""
        return self._forward(crops)[0]

    def shares(self, crops: np.ndarray) -> np.ndarray:
        """Shares (n, K) of the K artifact subspaces in the logits of crops; K = 0 for a method without subspaces.

        K + 1 forward passes through the detector as it was trained, which is loaded the first time.
        """
        if not len(crops):
            return np.empty((0, 0))
        with self._unmerged_lock:  # subspace_shares changes the weights for a while
            if not self._unmerged.layers:
                return np.empty((len(crops), 0))
            parts = [self._unmerged.subspace_shares(batch) for batch in self._batches(crops)]
        return torch.cat(parts).double().cpu().numpy()

    def judge_image(self, faces: Sequence[FoundFace], outputs: Outputs) -> ImageResult:
        """The result of an image from the outputs for its faces."""
        scores = expit(outputs.logits)
        judged = (
            FaceScore(face.box, score, *self._decide("frame", score), outputs.share(i), outputs.embedding(i))
            for i, (face, score) in enumerate(zip(faces, scores.tolist(), strict=True))
        )
        return ImageResult(OK if faces else NO_FACE, tuple(judged))

    def judge_video(self, frames: Sequence[FoundFrame], outputs: Outputs) -> VideoResult:
        """The result of a video from the outputs for its frames, of which there is one at least."""
        scores = expit(outputs.logits)
        judged = tuple(
            FrameResult(each.frame_index, each.seconds, score, each.box, outputs.share(i), outputs.embedding(i))
            for i, (each, score) in enumerate(zip(frames, scores.tolist(), strict=True))
        )
        mean = float(scores.mean())
        return VideoResult(OK, mean, *self._decide("video", mean), judged)

    def _decide(self, level: Level, score: float) -> tuple[float, str]:
        """Calibrated probability of fake, and the verdict."""
        decision = self.decisions[level]
        verdict = "fake" if score >= decision.threshold else "real"
        return float(decision.calibration.probability(np.asarray(score))), verdict

    @torch.inference_mode()
    def _forward(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n,) float64 and embeddings (n, D) float32."""
        logits, features = [np.empty(0)], []
        for batch in self._batches(crops):
            features.append(self.detector.embed(batch))
            logits.append(self.detector.classify(features[-1]).double().cpu().numpy())
        embeddings = torch.cat(features).float().cpu().numpy() if features else np.empty((0, 0), np.float32)
        return np.concatenate(logits), embeddings

    def _batches(self, crops: np.ndarray) -> Iterator[torch.Tensor]:
        """Crops as (<= BATCH_SIZE, 3, S, S) float32 in [0, 1] on the device."""
        for start in range(0, len(crops), BATCH_SIZE):
            batch = torch.from_numpy(crops[start : start + BATCH_SIZE]).permute(0, 3, 1, 2)
            yield batch.to(self._device).float() / 255

    @cached_property
    def _unmerged(self) -> Detector:
        return Detector.load(self.folder).to(self._device).eval()


def find_parts(folder: Path) -> tuple[Path, Path | None]:
    """The detector's folder and YuNet's file, if there is one, of a model's folder or of a bare detector's.

    Raises:
        UserError: there is no detector in it.
    """
    for candidate in (folder / "artifacts", folder):
        if (candidate / "detector" / "detector.json").is_file():
            face_detector = candidate / "face_detector.onnx"
            return candidate / "detector", face_detector if face_detector.is_file() else None
    if (folder / "detector.json").is_file():
        return folder, None
    raise UserError(f"{folder} holds no detector: name the folder of a registered model, or that of a detector.")


def _check_length(path: Path, longest: float, max_pixels: int) -> None:
    with closing(Video(path, max_pixels)) as video:
        seconds, frames = video.duration(), len(video.numbers)
    if seconds is None:
        raise ImageError("the video does not say how long it lasts")
    if seconds > longest:
        raise ImageError(f"the video lasts {seconds:.0f} s, more than the {longest:g} s that are taken")
    if frames > longest * MOST_PER_SECOND:
        raise ImageError(f"the video has {frames} frames, more than {longest:g} s hold")


def _area(face: Detection) -> float:
    return float(face.box[2] * face.box[3])


def _box(box: np.ndarray) -> Box:
    x, y, width, height = box.tolist()
    return x, y, width, height
