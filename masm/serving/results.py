"""What is said of an image or a video."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

OK, NO_FACE = "ok", "no face"

Box = tuple[float, float, float, float]
"""x, y, width and height in pixels of the upright image."""


@dataclass(frozen=True)
class FaceScore:
    """What is said of one face.

    Attributes:
        box: where it is.
        score: sigmoid of the logit, in [0, 1]; high says fake.
        probability: of fake, calibrated.
        verdict: "fake" or "real".
        shares: signed share of each artifact subspace in the logit (see `masm.adapters.shares`), positive for
            fake; empty for a method without subspaces, None where they were not asked for.
        embedding: (D,) float32 pooled features; None where they were not asked for.
    """

    box: Box
    score: float
    probability: float
    verdict: str
    shares: tuple[float, ...] | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class ImageResult:
    """An image's outcome, "ok", "no face" or why it cannot be used, and its faces, the largest first.

    `score`, `probability` and `verdict` of the image are those of its largest face; None without one.
    """

    outcome: str
    faces: tuple[FaceScore, ...] = ()

    @property
    def score(self) -> float | None:
        """Of the largest face."""
        return self.faces[0].score if self.faces else None

    @property
    def probability(self) -> float | None:
        """Of the largest face."""
        return self.faces[0].probability if self.faces else None

    @property
    def verdict(self) -> str | None:
        """Of the largest face."""
        return self.faces[0].verdict if self.faces else None


@dataclass(frozen=True)
class FrameResult:
    """The score of a video's face in one frame; the rest as in `FaceScore`, and `seconds` from the first frame on."""

    frame_index: int
    seconds: float | None
    score: float
    box: Box
    shares: tuple[float, ...] | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class VideoResult:
    """A video's outcome, as in `ImageResult`, and its figures: its score is the mean of its frames' scores."""

    outcome: str
    score: float | None = None
    probability: float | None = None
    verdict: str | None = None
    frames: tuple[FrameResult, ...] = ()


def answer(result: ImageResult | VideoResult) -> dict[str, Any]:
    """A result as it is sent: its figures, and its `faces` or `frames` as dictionaries without their embeddings."""
    figures = {name: getattr(result, name) for name in ("outcome", "score", "probability", "verdict")}
    if isinstance(result, ImageResult):
        return figures | {"faces": [_fields(face) for face in result.faces]}
    return figures | {"frames": [_fields(frame) for frame in result.frames]}


def _fields(part: FaceScore | FrameResult) -> dict[str, Any]:
    """With lists for tuples, as in JSON."""
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(part).items()}
    del fields["embedding"]
    return fields
