"""Sections of params.yaml about runs of the training loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from masm.settings.method import FROZEN, Losses, MaskKind, Method, hyperparameters_of
from masm.settings.section import FileName, Section, Share


class Augmentation(Section):
    """Shares of the training images that are degraded besides, each by a strength of its own (`masm.data.augment`)."""

    blur: float = Field(default=0, ge=0, le=1)
    noise: float = Field(default=0, ge=0, le=1)
    jpeg: float = Field(default=0, ge=0, le=1)
    self_blends: float = Field(default=0, ge=0, le=1, description="of the fakes, replaced (`masm.data.selfblend`)")


class Optimisation(Section):
    """One run of the training loop."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2, description="images of a step, over all workers")
    lr: float | None = Field(
        default=None, gt=0, description="of what learns in the backbone; left out where search.space has it"
    )
    head_lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0, description="of the head; the backbone has none")
    clip_norm: float = Field(gt=0)
    augmentation: Augmentation = Augmentation()
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the passes; weights: float32")
    accumulation: int = Field(default=1, ge=1, description="parts of a worker's share of a batch, one after the other")
    activation_checkpointing: bool = Field(
        default=False, description="activations are computed again in the backward pass instead of kept"
    )

    @model_validator(mode="after")
    def _shared_in_pairs(self) -> Optimisation:
        check_shares(self.batch_size, self.accumulation, least=1, most=1)
        return self


class Workers(Section):
    """How many workers, at least and at most; a whole number is both."""

    least: int = Field(ge=1)
    most: int = Field(ge=1)

    @model_validator(mode="before")
    @classmethod
    def _of_number(cls, given: Any) -> Any:
        if isinstance(given, bool):  # Python takes it for 1
            raise ValueError("give a number, or {least, most}")
        return {"least": given, "most": given} if isinstance(given, int) else given

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) must not be above most ({self.most})")
        return self


def check_shares(batch_size: int, accumulation: int, least: int, most: int) -> None:
    """Whether `least` to `most` workers can each take equally many real-fake pairs of a batch, in equal parts.

    Raises:
        ValueError: some number of them cannot.
    """
    multiple = 2 * accumulation * math.lcm(*range(least, most + 1))
    if batch_size % multiple:
        number = f"{least}" if least == most else f"{least} to {most}"
        raise ValueError(
            f"batch_size ({batch_size}) cannot be shared in real-fake pairs by {number} worker(s) with accumulation "
            f"{accumulation}: use a multiple of {multiple}"
        )


class Train(Optimisation):
    """The final training run."""

    workers: Workers = Field(description="a number, or {least, most}: as many as the cluster has room for")
    max_failures: int = Field(ge=0, description="worker failures to recover from")
    false_positive_rate: Share = Field(description="on validation, at the thresholds for frames and for videos")
    calibration: Literal["temperature", "isotonic"] = Field(
        default="temperature", description="how scores become probabilities; isotonic needs many validation videos"
    )

    @model_validator(mode="after")
    def _shared_in_pairs(self) -> Train:  # in place of Optimisation's
        check_shares(self.batch_size, self.accumulation, self.workers.least, self.workers.most)
        return self


class Candidate(Section):
    """One method of a comparison, with the hyper-parameters that it has."""

    lr: float = Field(gt=0)
    rank: int = Field(default=0, ge=0)
    subspaces: int = Field(default=0, ge=0)
    mask_threshold: float = Field(default=0.0, ge=0)
    lambda_orth: float = Field(default=0.0, ge=0)
    lambda_spec: float = Field(default=0.0, ge=0)
    mask_kind: MaskKind | None = Field(default=None, description="of masm; null: mask.kind")


class Comparison(Section):
    """Several methods, trained as `train` says but for these values, each with several seeds."""

    seeds: int = Field(ge=2, description="runs of each method: seed, seed + 1, ...")
    table: Path = Field(description="the Markdown file that the comparison writes")
    methods: dict[Method, Candidate] = Field(min_length=1, description="the first is what the others are held against")
    losses: dict[FileName, Losses] = Field(
        default_factory=dict,
        description="each method with each of these; the first is what a method's others are held against",
    )

    @model_validator(mode="after")
    def _own_hyperparameters(self) -> Comparison:
        for method, candidate in self.methods.items():
            expected, given = set(hyperparameters_of(method)), candidate.model_fields_set - {"lr"}
            if foreign := given - expected - ({"mask_kind"} if method == "masm" else set()):
                raise ValueError(f"{method} has no {min(foreign)}: take it out")
            if missing := expected - given:
                raise ValueError(f"{method} needs {min(missing)}: give it")
        return self

    @model_validator(mode="after")
    def _losses_have_what_learns(self) -> Comparison:
        if "probe" in self.methods and any(losses.in_use() for losses in self.losses.values()):
            raise ValueError(f"{FROZEN}: compare it without losses")
        return self


class TermWeights(Section):
    """Weights of the terms of pretraining's loss; that of the reconstruction is 1."""

    region: float = Field(default=0.007, ge=0, description="reconstruction of the covered region (FSFM)")
    alignment: float = Field(default=0.1, ge=0, description="of the visible patches with the whole face (FSFM)")
    energy: float = Field(default=0.5, ge=0, description="energies of the patches in bands of frequencies (ours)")


class Pretrain(Section):
    """How the shipped starter backbone is made (python -m pipelines.pretrain)."""

    workers: int = Field(default=1, ge=1)
    people: int = Field(ge=0, description="drawn")
    photographs: int = Field(ge=1, description="of each of them")
    folder: Path | None = Field(default=None, description="photographs of real faces, to be seen besides")
    detector_weights: Path | None = Field(default=None, description="the YuNet file that finds their faces")
    origin: str | None = Field(default=None, description="of the folder's photographs, and their terms: for the card")
    views: int = Field(default=16, ge=1, description="crops of each photograph of the folder")
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="images of a step, over all workers")
    lr: float = Field(gt=0)
    hidden: Share = Field(default=0.75, description="share of the patches that the encoder does not see")
    momentum: Share = Field(default=0.996, description="of the slow copy, at the start; it rises to 1")
    weights: TermWeights = TermWeights()

    @model_validator(mode="after")
    def _consistent(self) -> Pretrain:
        if not self.people and self.folder is None:
            raise ValueError("people 0 and no folder leave nothing to learn from: draw people, or name a folder")
        if self.folder is not None and (self.detector_weights is None or self.origin is None):
            raise ValueError(
                "folder needs detector_weights, YuNet's .onnx file, and origin: whose photographs these are"
            )
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of workers ({self.workers})")
        return self
