"""Sections of params.yaml about the faces, the datasets made of them and their checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from masm.settings.section import Section, Share

Role = Literal["train", "validate", "test"]
Split = Literal["train", "val", "test"]
Severity = Literal["error", "warning"]
ROLE_SPLITS: dict[Role, tuple[Split, ...]] = {"train": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The splits that the rows of a face table can have, by the role of its dataset."""
PHOTOGRAPHS = "faces"
"""The key of `licences` that is of the photographs of section `faces`."""


class Faces(Section):
    """Where the real faces come from, and how the people are divided between the roles."""

    source: Literal["drawn", "photographs"]
    people: int = Field(default=0, ge=0, description="how many people to draw; photographs bring their own")
    photographs: int = Field(default=1, ge=1, description="drawn photographs of each person")
    folder: Path | None = Field(default=None, description="the folder of photographs")
    person_pattern: str = Field(default=r"([^_]+)", description="its first group, matched at the name's start")
    shares: dict[Role, Share] = Field(description="share of the people that each role gets")
    validation_share: Share = Field(description="share of the train people kept for choosing the checkpoint")

    @model_validator(mode="after")
    def _complete(self) -> Faces:
        if self.source == "drawn" and self.people < 1:
            raise ValueError("source 'drawn' needs people: a number of 1 or more")
        if self.source == "photographs" and self.folder is None:
            raise ValueError("source 'photographs' needs folder: the folder that holds them")
        if set(self.shares) != {"train", "validate", "test"} or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError("shares must give train, validate and test, and add up to 1")
        return self


class Crop(Section):
    """How a face becomes the square image that the detector sees; kept with the table and the model."""

    detector: Literal["given", "yunet", "cascade"]
    detector_weights: Path | None = Field(default=None, description="the YuNet file")
    working_size: int = Field(ge=32, description="longer side of the face box when it is forged, px")
    size: int = Field(ge=32, description="side of the crop, px")
    margin: float = Field(ge=1, le=3, description="crop side over face box side")
    alignment: Literal["square", "landmarks"] = Field(default="square", description="upright, or as the mean face")
    frames: int = Field(ge=1, description="jittered crops of each photograph")
    video_frames: int = Field(default=32, ge=1, description="frames of each video, spread evenly over all of it")

    @model_validator(mode="after")
    def _detector_suffices(self) -> Crop:
        if self.detector == "yunet" and self.detector_weights is None:
            raise ValueError("detector 'yunet' needs detector_weights: the path of its .onnx file")
        if self.detector == "cascade" and self.alignment == "landmarks":
            raise ValueError("alignment 'landmarks' needs detector 'yunet': the cascade gives no landmarks")
        return self


class ForgedDataset(Section):
    """A face table whose forgeries are made here from `faces`, all of it taken with one camera."""

    role: Role
    camera: str
    forgeries: tuple[str, ...] = Field(min_length=1)


class ImportedDataset(Section):
    """A face table from videos or crops that exist; `masm data import` writes the entry and the index."""

    role: Role
    index: Path = Field(description="what the import found, one row per video; a file that git tracks")
    digest: str = Field(description="of the index: by it DVC sees that other data were imported")
    splits: tuple[Split, ...] = Field(min_length=1, description="of the layout, that the dataset takes")

    @model_validator(mode="after")
    def _train_takes_no_test(self) -> ImportedDataset:
        if self.role == "train" and "test" in self.splits:
            raise ValueError("splits: a train dataset takes train and val alone")
        return self


def _dataset_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return "imported" if "index" in keys else "forged"


Dataset = Annotated[
    Annotated[ForgedDataset, Tag("forged")] | Annotated[ImportedDataset, Tag("imported")],
    Discriminator(_dataset_kind),
]


DATASET_KINDS: dict[str, type[Section]] = {"forged": ForgedDataset, "imported": ImportedDataset}


class Severities(Section):
    """What a finding of a check does: an error fails the validation, a warning is shown and kept."""

    table: Severity = Field(description="columns, values and counts of a face table")
    person: Severity = Field(description="a person in two places; a place is a role and a split")
    recording: Severity = Field(description="a real recording shown, or used for a forgery, in two places")
    video: Severity = Field(description="a video in two splits of its dataset")
    image: Severity = Field(description="the same image bytes in two places")
    near_duplicate: Severity = Field(description="images that look alike in two places")
    repetition: Severity = Field(description="images that look alike in two datasets of one place")
    confounding: Severity = Field(description="reals and fakes of a dataset from different sources")


class Checks(Section):
    """What the validate stage asks of every face table, and ingest of every dataset."""

    coverage: float = Field(ge=0, le=1, description="least share of a dataset's videos that give a face")
    min_frames: int = Field(ge=1, description="fewest frames of a video")
    min_videos: int = Field(ge=1, description="fewest videos of each class in a dataset")
    radius: int = Field(
        ge=0, le=16, description="of 64 bits, in which perceptual hashes of look-alikes differ at most"
    )
    separability: float = Field(
        gt=0.5, le=1, description="balanced accuracy from which a property alone tells reals from fakes"
    )
    severity: Severities
