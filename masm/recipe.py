"""What a training run is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from masm.adapters import MaskSettings
from masm.data.augment import MILD, Augmentation
from masm.errors import UserError
from masm.losses import LossSettings


@dataclass(frozen=True)
class Recipe:
    """One run of the loop: what params.yaml fixes, and what the search found.

    `epochs`, `batch_size` (over all workers), `lr`, `head_lr`, `weight_decay` (of the head) and `clip_norm`
    as in params.yaml, and `augmentation`; `lambda_orth` and `lambda_spec` weight the two penalties, `losses` says
    what is minimised beside the classification loss. What a step costs, and not what it is: `precision` of the
    forward and backward pass (the weights, the losses, the penalties and validation stay in float32), `accumulation`
    of a worker's share of a batch, in so many parts, and `activation_checkpointing`, by which the blocks' activations
    are computed again in the backward pass instead of kept.

    Raises:
        UserError: losses over pairs, which see a whole batch, with accumulation, which shows them a part.
    """

    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    clip_norm: float
    lambda_orth: float
    lambda_spec: float
    mask: MaskSettings
    seed: int
    augmentation: Augmentation = MILD
    losses: LossSettings = field(default_factory=LossSettings)
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulation: int = 1
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.accumulation > 1 and self.losses.over_pairs:
            raise UserError(
                "losses over pairs (triplet, alignment, uniformity) see the whole batch, of which accumulation = "
                f"{self.accumulation} would show them a part: set it to 1 and activation_checkpointing to true, which "
                "saves memory and changes no result."
            )
