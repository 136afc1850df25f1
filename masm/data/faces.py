"""Faces: what a face is, how it is detected, and how it is cut out. Ingest and serving share this code.

Coordinates are pixels of the image, x to the right and y down; x = 0 is the left edge of the first pixel.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Protocol

import cv2
import numpy as np

from masm.data.alignment import align, transform
from masm.data.images import ImageError
from masm.errors import UserError

CROP_VERSION = 1
"""Number of the cropping code: raise it with every change that alters a crop's pixels."""

DETECTORS = ("given", "yunet", "cascade")
DETECTION_SIDE = 640
"""Longer side, in pixels, to which a larger photograph is scaled down before faces are sought in it."""

LEAST_SIDE = 10
"""Shorter side, in pixels, of an image in which faces are sought; YuNet's smallest face is as large."""

SURROUNDINGS = 2.0
"""Side of the square that `prepare_photograph` keeps, over the longer side of the face box."""


@dataclass(frozen=True)
class Face:
    """A photograph and the face that was found in it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        box: (4,) float32, the tight face box: x, y, width, height in pixels.
        landmarks: (n >= 5, 2) float32 pixels, or None where the detector gives none. The first five are the
            image-left eye, image-right eye, nose tip, image-left and image-right corner of the mouth.
        identity: the person.
        photograph: unique name of the photograph.
    """

    image: np.ndarray
    box: np.ndarray
    landmarks: np.ndarray | None
    identity: str
    photograph: str


@dataclass(frozen=True)
class Detection:
    """One detected face: box and landmarks as in `Face`, and the detector's own confidence."""

    box: np.ndarray
    landmarks: np.ndarray | None
    confidence: float


@dataclass(frozen=True)
class CropProfile:
    """How faces are found and cut out; it travels with the face table and the model.

    Attributes:
        detector: "given" (faces carry their box), "yunet" or "cascade".
        size: side of the crop in pixels.
        margin: side of the square crop over the longer side of the face box.
        detector_sha256: of the YuNet file; None for the other detectors.
        alignment: "square" (upright, about the box) or "landmarks" (turned and scaled to the mean face).
        frames: frames of a video, spread evenly over the whole of it; None for all. It has no say in
            photographs.
    """

    detector: str
    size: int
    margin: float
    detector_sha256: str | None
    alignment: str = "square"
    frames: int | None = None

    @property
    def hash(self) -> str:
        """16 hex digits over all fields and the version of the cropping code."""
        text = json.dumps({**asdict(self), "version": CROP_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Jitter:
    """A small change of the crop's square: shifts over its side, a factor on its side, and a mirror."""

    shift_x: float
    shift_y: float
    scale: float
    flip: bool


_STILL = Jitter(0.0, 0.0, 1.0, flip=False)


class FaceDetector(Protocol):
    """Anything that finds faces in an (H, W, 3) uint8 RGB image."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Return every face found, in any order."""


def make_profile(
    detector: str,
    size: int,
    margin: float,
    weights: Path | None = None,
    alignment: str = "square",
    frames: int | None = None,
) -> CropProfile:
    """Build the crop profile; for YuNet it records the SHA-256 of the `weights` file.

    Raises:
        UserError: the detector is unknown, or YuNet's file is missing.
    """
    if detector not in DETECTORS:
        raise UserError(f"unknown face detector {detector!r}: use one of {', '.join(DETECTORS)}")
    digest = _file_sha256(weights) if detector == "yunet" else None
    return CropProfile(detector, size, margin, digest, alignment, frames)


def make_detector(profile: CropProfile, weights: Path | None = None) -> FaceDetector:
    """Build the detector that a profile names.

    Raises:
        UserError: the profile needs no detector, or `weights` is not the YuNet file that the profile records.
    """
    if profile.detector == "cascade":
        return CascadeDetector()
    if profile.detector != "yunet":
        raise UserError(f"crop profile {profile.detector!r} finds no faces: choose 'yunet' or 'cascade'")
    if _file_sha256(weights) != profile.detector_sha256:
        raise UserError(f"{weights} is not the YuNet file of the crop profile (sha256 differs): use that one")
    assert weights is not None
    return YuNetDetector(weights)


class YuNetDetector:
    """YuNet through OpenCV: boxes from forehead to chin, five landmarks, confidences in 0..1.

    YuNet names its points from the person's side, right eye first, which is the image-left one: its order is
    the order of `Face.landmarks`.

    Raises:
        UserError: OpenCV cannot load the file.
    """

    def __init__(self, path: Path, least_confidence: float = 0.7) -> None:
        try:
            self._network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), least_confidence)
        except cv2.error:
            raise UserError(f"{path} is not a YuNet model OpenCV can load: pass the .onnx file") from None

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find faces; an image of more than `DETECTION_SIDE` pixels is scaled down for it."""
        if not _can_hold_face(image):
            return []
        small, scale = _shrink(image, DETECTION_SIDE)
        self._network.setInputSize((small.shape[1], small.shape[0]))
        _, rows = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        found = np.empty((0, 15), np.float32) if rows is None else _in_the_picture(rows, small.shape)
        return [Detection(row[:4] / scale, row[4:14].reshape(5, 2) / scale, float(row[14])) for row in found]


class CascadeDetector:
    """The frontal Viola-Jones cascade in the OpenCV 4 wheel: no landmarks.

    Its boxes are squares of about the height of YuNet's, but as wide as high: wider than the face. Crops go
    by the longer side, so both detectors give crops of about the same content. The confidence is the
    cascade's stage weight, not a probability.
    """

    def __init__(self) -> None:
        folder = Path(cv2.__file__).parent / "data"
        self._cascade = cv2.CascadeClassifier(str(folder / "haarcascade_frontalface_default.xml"))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find faces; an image of more than `DETECTION_SIDE` pixels is scaled down for it."""
        if not _can_hold_face(image):
            return []
        small, scale = _shrink(image, DETECTION_SIDE)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        boxes, _, weights = self._cascade.detectMultiScale3(grey, 1.1, 5, outputRejectLevels=True)
        return [
            Detection((np.asarray(box) / scale).astype(np.float32), None, float(weight))
            for box, weight in zip(boxes, weights, strict=True)
        ]


class FaceCropper:
    """Finds faces and cuts them out as a crop profile says; threads find them one after the other.

    With the detector "given" an image is a face's crop already: the whole of it is the face.

    Args:
        profile: how.
        weights: the YuNet file, where the profile names YuNet.

    Raises:
        UserError: `weights` is not the profile's file.
    """

    def __init__(self, profile: CropProfile, weights: Path | None = None) -> None:
        self.profile = profile
        self._detector = None if profile.detector == "given" else make_detector(profile, weights)
        self._lock = Lock()

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Return every face found, in any order."""
        if self._detector is not None:
            with self._lock:
                return self._detector.detect(image)
        return [Detection(np.array([0, 0, image.shape[1], image.shape[0]], np.float32), None, 1.0)]

    def cut(self, image: np.ndarray, face: Detection) -> np.ndarray:
        """Cut a detected face out of its image, or out of a mask of the same height and width; see `crop`."""
        whole = replace(self.profile, margin=1.0, alignment="square")
        return crop(image, face.box, whole if self._detector is None else self.profile, landmarks=face.landmarks)


def find_face(image: np.ndarray, detector: FaceDetector) -> Detection | None:
    """Return the largest face that the detector is confident of, or None."""
    return max(detector.detect(image), key=lambda found: float(found.box[2] * found.box[3]), default=None)


def prepare_photograph(
    image: np.ndarray, detection: Detection, working_size: int, identity: str, photograph: str
) -> Face:
    """Cut a face with generous surroundings out of a photograph and scale it to the working resolution.

    Forgeries are made near the resolution of the crops: scaling down would wipe out their traces.

    Args:
        image: (H, W, 3) uint8 RGB.
        detection: the face in it.
        working_size: longer side of the face box afterwards, in pixels. Smaller faces are not enlarged,
            because that would give real faces the traces of resampling.
        identity, photograph: names, as in `Face`.
    """
    left, top, side = _square(detection.box, SURROUNDINGS, _STILL)
    origin = np.maximum((left, top), 0)
    end = np.minimum((left + side, top + side), image.shape[1::-1])
    cut = image[origin[1] : end[1], origin[0] : end[0]]
    wanted = working_size / float(detection.box[2:].max())
    size = np.maximum(np.rint((end - origin) * min(1.0, wanted)), 1).astype(int)
    scale = size / (end - origin)
    box = np.concatenate([(detection.box[:2] - origin) * scale, detection.box[2:] * scale])
    points = None if detection.landmarks is None else (detection.landmarks - origin) * scale
    return Face(
        image=cv2.resize(cut, size.tolist(), interpolation=cv2.INTER_AREA),
        box=box.astype(np.float32),
        landmarks=None if points is None else points.astype(np.float32),
        identity=identity,
        photograph=photograph,
    )


def draw_jitter(rng: np.random.Generator, shift: float = 0.04, scale: float = 0.08) -> Jitter:
    """Draw shifts in +-`shift` of the side, a factor in 1 +- `scale`, and a mirror with probability 1/2."""
    across, down = rng.uniform(-shift, shift, 2).tolist()
    return Jitter(across, down, rng.uniform(1 - scale, 1 + scale), flip=bool(rng.random() < 0.5))


def crop(
    image: np.ndarray,
    box: np.ndarray,
    profile: CropProfile,
    jitter: Jitter | None = None,
    landmarks: np.ndarray | None = None,
) -> np.ndarray:
    """Cut a face out and scale it to the profile's size.

    The plain square has the box's centre and `profile.margin` times its longer side, and is rounded to whole
    pixels so that shrinking averages whole pixels. The aligned one lies so about the mean face, and has its
    turn. Where a square leaves the image, the edge pixels are repeated.

    Args:
        image: (H, W, 3) uint8 RGB, or a mask (H, W) uint8.
        box: (4,) x, y, width, height in pixels.
        profile: size, margin and alignment.
        jitter: change of the square; None for none.
        landmarks: as in `Face`; needed for the alignment "landmarks".

    Returns:
        (size, size, 3) uint8 RGB, or a mask (size, size).

    Raises:
        ImageError: the box has no area or lies outside the image, or there are no landmarks to align.
    """
    move = jitter or _STILL
    if profile.alignment == "square":
        result = _cut_square(image, box, profile, move)
    elif landmarks is not None:
        result = align(image, landmarks, *_aligned_square(profile, move), profile.size)
    else:
        raise ImageError("no landmarks to align the face by")
    return result[:, ::-1].copy() if move.flip else result


def crop_landmarks(
    box: np.ndarray, profile: CropProfile, jitter: Jitter | None, landmarks: np.ndarray | None
) -> np.ndarray | None:
    """Where the first five landmarks lie in the crop that `crop` cuts out, which takes the same: (5, 2) pixels of it.

    In a mirrored crop left and right have changed places, so that the image-left eye is the first again.
    """
    if landmarks is None:
        return None
    move = jitter or _STILL
    five = landmarks[:5].astype(np.float64)
    if profile.alignment == "square":
        left, top, side = _square(box, profile.margin, move)
        points = (five - (left, top)) * profile.size / side
    else:
        to_image = transform(five, *_aligned_square(profile, move), profile.size)
        points = np.linalg.solve(to_image[:, :2], (five - to_image[:, 2]).T).T
    return np.array([profile.size, 0]) + points[[1, 0, 2, 4, 3]] * [-1, 1] if move.flip else points


def _aligned_square(profile: CropProfile, move: Jitter) -> tuple[tuple[float, float], float]:
    """Centre and side of an aligned crop, in units of the mean face."""
    return (move.shift_x * profile.margin, move.shift_y * profile.margin), profile.margin * move.scale


def _cut_square(image: np.ndarray, box: np.ndarray, profile: CropProfile, move: Jitter) -> np.ndarray:
    left, top, side = _square(box, profile.margin, move)
    height, width = image.shape[:2]
    inside = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    if inside.size == 0:
        raise ImageError(f"face box {np.round(box, 1).tolist()} lies outside the {width} x {height} image")
    below, right = max(top + side - height, 0), max(left + side - width, 0)
    square = cv2.copyMakeBorder(inside, max(-top, 0), below, max(-left, 0), right, cv2.BORDER_REPLICATE)
    interpolation = cv2.INTER_AREA if side >= profile.size else cv2.INTER_CUBIC
    return cv2.resize(square, (profile.size, profile.size), interpolation=interpolation)


def _square(box: np.ndarray, margin: float, move: Jitter) -> tuple[int, int, int]:
    """Left edge, top edge and side, in whole pixels, of the square around a box."""
    x, y, width, height = (float(value) for value in box)
    if not (np.isfinite([x, y]).all() and min(width, height) > 0 and max(width, height) < np.inf):
        raise ImageError(f"face box {np.round(box, 1).tolist()} has no area")
    side = margin * max(width, height)
    centre_x, centre_y = x + width / 2 + move.shift_x * side, y + height / 2 + move.shift_y * side
    scaled = side * move.scale
    return round(centre_x - scaled / 2), round(centre_y - scaled / 2), max(round(scaled), 1)


def _in_the_picture(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Those of YuNet's rows (n, 15) that can be faces: of slivers it gives infinite boxes, and boxes far away."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    near, sides, size = rows[:, :2], rows[:, 2:4], np.array([shape[1], shape[0]])
    seen = (near < size) & (near + sides > 0) & (sides > 0) & (sides < 4 * size.max())
    return rows[seen.all(axis=1)]


def _can_hold_face(image: np.ndarray) -> bool:
    """Whether enough is left of the shorter side at `DETECTION_SIDE`."""
    shorter, longer = sorted(image.shape[:2])
    return shorter * min(1.0, DETECTION_SIDE / longer) >= LEAST_SIDE


def _shrink(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """Scale an image down until its longer side is at most `longest`; return it and the factor."""
    scale = min(1.0, longest / max(image.shape[:2]))
    if scale == 1.0:
        return image, 1.0
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def _file_sha256(path: Path | None) -> str:
    if path is None or not path.is_file():
        raise UserError(f"no YuNet file at {path}: give its path, or use the detector 'cascade'")
    return hashlib.sha256(path.read_bytes()).hexdigest()
