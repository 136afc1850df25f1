"""The crop profile that params.yaml asks for."""

from __future__ import annotations

from pathlib import Path

from masm.data.faces import CropProfile, make_profile
from masm.settings import Settings


def detector_weights(settings: Settings) -> Path | None:
    """The YuNet file, as an absolute path."""
    return None if settings.crop.detector_weights is None else settings.path(settings.crop.detector_weights)


def crop_profile(settings: Settings) -> CropProfile:
    """How faces are found and cut out; the same for every dataset of a workspace."""
    crop = settings.crop
    weights = detector_weights(settings)
    return make_profile(crop.detector, crop.size, crop.margin, weights, crop.alignment, crop.video_frames)
