"""Sections of params.yaml about what is adapted, how, and what is minimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from masm.settings.section import Section, Share

Method = Literal["masm", "effort", "lora", "layernorm", "full", "probe"]
MaskKind = Literal["none", "static", "adaptive"]
Target = Literal["q", "k", "v", "proj", "fc1", "fc2", "fc1_g", "fc1_x"]


class Backbone(Section):
    """The pretrained vision transformer that is adapted."""

    name: str = Field(description="timm's name; 'starter' for the one that ships")
    weights: str = Field(description="'starter', 'hub', or the path of a .safetensors, .pth, .pt or .bin file")
    layout: Literal["timm", "fsfm"] | None = Field(
        default=None, description="whose a file is, where its keys do not say: pooling and normalisation follow"
    )

    @model_validator(mode="after")
    def _layout_of_a_file(self) -> Backbone:
        if self.layout is not None and self.weights in ("starter", "hub"):
            raise ValueError(f"layout is for files: leave it out with weights {self.weights!r}")
        return self


class Adapter(Section):
    """The method, and what of it is not searched; a method ignores what it does not have."""

    method: Method
    targets: tuple[Target, ...] = Field(min_length=1, description="of masm and lora")
    grouping: Literal["interleaved", "contiguous"] = Field(description="of masm")
    cache: Path | None = Field(default=None, description="a folder that keeps decompositions")


class Mask(Section):
    """The layer mask of masm, but for its threshold, which is searched, as its kind may be."""

    kind: MaskKind | None = Field(default=None, description="left out where search.space has mask_kind")
    over: Literal["batch", "method"] = Field(description="whose gradients are compared")
    threshold_kind: Literal["quantile", "absolute"]
    interval: int = Field(ge=2, description="steps from one decision to the next")
    momentum: Share = Field(description="of the moving averages of the gradients")


LOSS_NUMBERS = ("triplet_weight", "margin", "alignment_weight", "uniformity_weight", "attribution_weight")
"""What of the losses can be searched."""
PAIR_WEIGHTS = {"triplet_weight", "alignment_weight", "uniformity_weight"}
"""Of the losses that compare the samples of a batch."""
GREATEST_MARGIN = 2.0
"""No two points of the unit sphere are further apart."""
FROZEN = "probe's features are frozen, so that it has nothing to learn from losses over pairs and attribution"


class Losses(Section):
    """What is minimised beside the classification loss; one of its numbers may stand in `search.space` instead."""

    triplet: Literal["none", "batch_all", "batch_hard", "semi_hard", "soft_margin", "real_anchored"] = "none"
    labels: Literal["class", "method", "dataset"] = Field(
        default="class", description="fakes of one are alike to the losses over pairs; reals always are"
    )
    triplet_weight: float = Field(default=1.0, ge=0)
    margin: float = Field(
        default=0.2, ge=0, le=GREATEST_MARGIN, description="of the triplets' distances, on the unit sphere"
    )
    alignment_weight: float = Field(default=0.0, ge=0)
    uniformity_weight: float = Field(default=0.0, ge=0)
    attribution: Literal["none", "method", "dataset"] = Field(
        default="none", description="what an auxiliary head tells fakes apart by"
    )
    attribution_weight: float = Field(default=1.0, ge=0)

    def numbers(self) -> dict[str, float]:
        """The weights and the margin that these losses have: what can be searched."""
        absent = set()
        if self.triplet == "none":
            absent |= {"triplet_weight", "margin"}
        if self.triplet == "soft_margin":
            absent.add("margin")
        if self.attribution == "none":
            absent.add("attribution_weight")
        return {name: getattr(self, name) for name in LOSS_NUMBERS if name not in absent}

    def in_use(self) -> dict[str, Any]:
        """The settings of the losses whose weight is not 0."""
        numbers = self.numbers()
        weights = {name for name, value in numbers.items() if name != "margin" and value}
        names = set(weights)
        if "triplet_weight" in weights:
            names |= {"triplet", *({"margin"} & numbers.keys())}
        if "attribution_weight" in weights:
            names.add("attribution")
        if weights - {"attribution_weight"}:
            names.add("labels")
        return self.model_dump(include=names)


def hyperparameters_of(method: str) -> tuple[str, ...]:
    """The hyper-parameters that a method of adaptation has."""
    of_masm = ("rank", "subspaces", "mask_threshold", "lambda_orth", "lambda_spec")
    return {"masm": of_masm, "lora": ("rank",)}.get(method, ())
