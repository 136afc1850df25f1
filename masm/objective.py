"""What a training step computes before its backward pass: the model's outputs, the samples' groups, the loss.

The classification loss is the mean of a worker's own samples, which `replica` averages. The losses over pairs see
the samples of all workers: see `gathered`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from masm.data.batches import Batch
from masm.data.frames import Frames
from masm.detector import Detector
from masm.errors import UserError
from masm.losses import LossSettings, attribution_loss, classification_loss, metric_loss

SELF_BLEND = "self-blend"
"""The method of fakes that are made on the fly (`masm.data.selfblend`)."""
_HEAD_STD = 0.02  # as the detector's head


@dataclass(frozen=True)
class Place:
    """A worker's place in its group."""

    rank: int
    world: int


ALONE = Place(rank=0, world=1)


class Outputs(NamedTuple):
    """Of a batch, in float32: the detector's logits (B,), the features (B, D) behind them, and the logits (B, C) of
    the attribution head, or (B, 0) without one."""

    logits: Tensor
    features: Tensor
    attribution: Tensor


class TrainingModel(nn.Module):
    """A detector with the attribution head that it has in training alone; one forward pass gives all that the losses
    take, so that whatever wraps the model averages all gradients.

    Args:
        detector: on its device.
        groups: that the attribution head tells apart; 0 for none.
        seed: draws the head's weights.
    """

    def __init__(self, detector: Detector, groups: int, seed: int) -> None:
        super().__init__()
        self.detector = detector
        self.attribution = nn.Linear(detector.head.in_features, groups) if groups else None
        if self.attribution is not None:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.attribution.weight, std=_HEAD_STD, generator=generator)
            nn.init.zeros_(self.attribution.bias)
            self.attribution.to(detector.device)

    def forward(self, images: Tensor) -> Outputs:
        """The outputs of images (B, 3, S, S) in [0, 1]."""
        features = self.detector.embed(images)
        attribution = features[:, :0] if self.attribution is None else self.attribution(features)
        return Outputs(self.detector.classify(features), features.float(), attribution.float())


@dataclass(frozen=True)
class Grouping:
    """Numbers for groups of frames: 0 real; 1, 2, ... the fakes by their names.

    Attributes:
        kind: what fakes are told apart by: "class" (not at all), "method" or "dataset".
        fakes: the names, sorted.
    """

    kind: str
    fakes: tuple[str, ...]

    @classmethod
    def of(cls, frames: Frames, kind: str, with_self_blends: bool) -> Grouping:
        """The groups that some frames show, with self-blends where there will be some.

        Self-blends are neither of the method nor of the dataset of the fake that they replace: they are made of the
        real beside it, which may be another dataset's.
        """
        names = set(_names(frames, np.flatnonzero(frames.labels), kind))
        return cls(kind, tuple(sorted(names | {SELF_BLEND} if with_self_blends and kind != "class" else names)))

    def numbers(self, frames: Frames, samples: np.ndarray, replaced: np.ndarray) -> np.ndarray:
        """The groups (n,) int64 of some frames, given by their numbers (n,); of these some (n,) bool are replaced by
        self-blends.

        Raises:
            UserError: a fake is of none of the groups.
        """
        known = {name: number for number, name in enumerate(self.fakes, start=1)}
        fakes = frames.labels[samples] == 1
        names = _names(frames, samples[fakes], self.kind)
        if self.kind != "class":
            names = [SELF_BLEND if blend else name for name, blend in zip(names, replaced[fakes], strict=True)]
        if unknown := sorted(set(names) - set(known)):
            raise UserError(
                f"fakes of {self.kind} {', '.join(unknown)} are unknown: training has {', '.join(self.fakes)}; add "
                "such frames to the train split, or set losses.attribution and losses.labels otherwise."
            )
        numbers = np.zeros(len(samples), np.int64)
        numbers[fakes] = [known[name] for name in names]
        return numbers


def _names(frames: Frames, samples: np.ndarray, kind: str) -> list[str]:
    if kind == "method":
        return frames.methods[samples].tolist()
    if kind == "dataset":
        return [frames.dataset_names[number] for number in frames.datasets[samples].tolist()]
    return ["fake"] * len(samples)


class Objective:
    """The loss of a batch: classification, the losses over pairs, attribution.

    Args:
        settings: which losses, and their weights.
        frames: the training frames, whose fakes make the groups.
        place: of this worker.
        with_self_blends: whether some fakes will be replaced by self-blends.
    """

    def __init__(self, settings: LossSettings, frames: Frames, place: Place, with_self_blends: bool) -> None:
        self.settings, self.frames, self.place = settings, frames, place
        self.pairs = Grouping.of(frames, settings.labels, with_self_blends) if settings.over_pairs else None
        attributed = settings.attribution != "none" and settings.attribution_weight > 0
        self.attribution = Grouping.of(frames, settings.attribution, with_self_blends) if attributed else None

    @property
    def attributed(self) -> int:
        """Outputs of the attribution head; 0 without one."""
        return 1 + len(self.attribution.fakes) if self.attribution else 0

    def check(self, validation: Frames) -> None:
        """Whether the attribution head knows all groups of the validation frames.

        It never sees these, so that training would go through; but a label that it does not know says that the
        splits hold other methods or datasets than they should, which is better said before training than never.

        Raises:
            UserError: one is not.
        """
        if self.attribution:
            self.attribution.numbers(validation, np.arange(len(validation)), np.zeros(len(validation), bool))

    def __call__(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The loss of a worker's share of a batch, whose gradients are averaged over the workers.

        Args:
            outputs: of the share's images.
            batch: the share.
        """
        device, settings = outputs.logits.device, self.settings
        loss = classification_loss(outputs.logits, batch.labels.to(device))
        if self.pairs:
            groups = self._groups(self.pairs, batch).to(device)
            features, groups = gathered(outputs.features, self.place), gathered(groups, self.place)
            loss = loss + metric_loss(features, groups, settings)
        if self.attribution:
            groups = self._groups(self.attribution, batch).to(device)
            loss = loss + settings.attribution_weight * attribution_loss(outputs.attribution, groups)
        return loss

    def _groups(self, grouping: Grouping, batch: Batch) -> Tensor:
        """The groups (b,) int64 of a batch's samples."""
        return torch.from_numpy(grouping.numbers(self.frames, batch.samples, batch.replaced))


def gathered(tensor: Tensor, place: Place) -> Tensor:
    """The tensors (b, ...) of all workers, one after the other (W b, ...), with gradient.

    Every worker takes the same loss of the whole, so that a worker knows its own tensor's gradient without asking the
    others. It is given W times: the workers' gradients, each through its own b samples, add up to that of the whole,
    but are averaged.
    """
    return tensor if place.world == 1 else _Gather.apply(tensor, place)


def interleaved(own: Tensor, count: int, place: Place) -> Tensor:
    """All `count` values (n,), of which each worker has every W-th one from its rank on; without gradient."""
    if place.world == 1:
        return own
    padded = own.new_zeros(-(-count // place.world))
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(place.world)]
    torch.distributed.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten()[:count]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, place: Place) -> Tensor:
        ctx.place = place
        parts = [torch.empty_like(tensor) for _ in range(place.world)]
        torch.distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        place = ctx.place
        return place.world * gradients[0].chunk(place.world)[place.rank], None
