"""Sections of params.yaml about how a model is judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from masm.settings.section import Section, distinct

Distortion = Literal[
    "saturation", "contrast", "blocks", "noise", "blur", "pixelation", "h264", "jpeg", "resize"
]  # fmt: skip


COLUMNS = r"split|family|track_id|source_clip|compression|width|height|profile|face_size|attributes\..+"
Slice = Annotated[str, Field(pattern=f"^({COLUMNS})$")]


class Robustness(Section):
    """Distortions of the test datasets (`masm.data.distort`), and how many frames the model sees under each."""

    kinds: Annotated[tuple[Distortion, ...], AfterValidator(distinct)] = Field(
        default=(), description="h264 needs the extra `video`"
    )
    frames: int = Field(default=0, ge=0, description="of each dataset's method, about as many; 0: none at all")
    frames_per_video: int | None = Field(
        default=None, ge=1, description="of each video that is chosen; null: all of them"
    )


class Evaluate(Section):
    """Scoring of the test datasets."""

    workers: int = Field(
        default=1, ge=1, description="1: in the stage itself; more: Ray's, of one CPU each, or of one GPU where it has"
    )
    batch_size: int = Field(ge=1)
    slices: Annotated[tuple[Slice, ...], AfterValidator(distinct)] = Field(
        default=(),
        description="columns of the face tables, attributes.NAME, or face_size (longer side of the box, px)",
    )
    robustness: Robustness = Robustness()
    draws: int = Field(ge=100, description="bootstrap draws")
    share_frames: int = Field(ge=0, description="frames of a dataset's method whose subspace shares are measured")
    embedding_frames: int = Field(ge=0, description="frames of a dataset's method whose embeddings are looked at")
    thumbnails: int = Field(
        default=0, ge=0, description="reals, and fakes, of the hardest errors whose pictures the report shows"
    )
    price_per_hour: float | None = Field(default=None, ge=0, description="of the machine, for the report's costs")


class Gate(Section):
    """What a model must show before it serves; null switches a condition off."""

    min_gain: float | None = Field(ge=0, description="the paired difference's interval lies above it")
    floors: dict[str, float | None] = Field(description="least video AUC of a test dataset: default, or by its name")
    max_drop: float | None = Field(ge=0, description="of any test dataset's video AUC under the champion's")
    max_robustness_drop: float | None = Field(ge=0, description="of the mean video AUC, distorted at level 3")
    max_calibration_error: float | None = Field(gt=0, description="of the videos' calibrated probabilities")
    max_latency_ms: float | None = Field(gt=0, description="of one crop, on the machine that runs the gate")
    clean_tree: bool = Field(description="code and settings must be those of the commit")

    @model_validator(mode="after")
    def _has_a_default(self) -> Gate:
        if "default" not in self.floors:
            raise ValueError("floors needs default: the least video AUC of a test dataset that it does not name")
        return self
