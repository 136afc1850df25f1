"""Which artifact subspaces may move, decided from the signal-to-noise ratio of their gradients.

Stated in the abstracts of MASM (arXiv 2601.01041): v1 has a mask that regulates the layers' updates by
the learning state of each artifact subspace, v3 finds the forgery-sensitive layers by the bias and
variance of layer-wise gradients. The statistics, the score and the decision below are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor

from masm.adapters.settings import MaskSettings
from masm.adapters.subspace import SubspaceLinear
from masm.errors import UserError

T = TypeVar("T")

_EPSILON = 1e-30  # 0 / 0 is 0, and real scores do not depend on the scale of the loss


class LayerMask:
    """A mask over (layer, subspace): a masked subspace stays in the forward pass and does not move.

    Per training step: zero_grad, backward of the classification loss alone (averaged over workers),
    `observe`, add the penalties' gradients, clip, `silence(optimizer)`, optimizer.step, `decide`. Before the
    first step, and while the mask is `calibrating`: zero_grad, backward, `observe`, `decide`.

    Workers that see the same averaged gradients hold the same mask: the decision is a function of the
    statistics alone, and ties go to the earlier subspace.

    Args:
        layers: the adapted layers, as `adapt` returns them.
        settings: how to decide.
    """

    def __init__(self, layers: Mapping[str, SubspaceLinear], settings: MaskSettings) -> None:
        self.settings = settings
        self._subspaces = {name: len(layer.subspaces) for name, layer in layers.items()}
        self._parameters = [list(one.parameters()) for layer in layers.values() for one in layer.subspaces]
        self._sizes = [sum(value.numel() for value in values) for values in self._parameters]
        device = self._parameters[0][0].device if self._parameters else torch.device("cpu")
        self._count = 0  # gradients observed
        self._squared_weights = 0.0  # sum of the gradients' squared weights in the mean: 1 / effective number
        self._mean = torch.zeros(sum(self._sizes), device=device)
        self._variance = torch.zeros(len(self._sizes), device=device)
        self._decided = False
        self._free = [True] * len(self._sizes)
        self._freed = [False] * len(self._sizes)  # since the last `silence`

    @property
    def free(self) -> dict[str, list[bool]]:
        """Which subspaces may move, by layer."""
        return self._by_layer(self._free)

    @property
    def calibrating(self) -> bool:
        """Whether a static mask still wants gradients of the pretrained model, before any step is taken."""
        return self.settings.kind == "static" and not self._decided and bool(self._parameters)

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the gradients that the factors hold, those of masked subspaces too; float32."""
        if not self._observing:
            return
        self._count += 1
        weight = self._newest_weight()
        gradients = [cast(Tensor, value.grad).flatten() for values in self._parameters for value in values]
        deviation = torch.cat(gradients).float() - self._mean
        distance = torch.stack([part.square().sum() for part in deviation.split(self._sizes)])
        self._mean += weight * deviation
        self._variance = (1 - weight) * (self._variance + weight * distance)
        self._squared_weights = (1 - weight) ** 2 * self._squared_weights + weight**2

    def scores(self) -> dict[str, list[float]]:
        """bias^2 / variance of the gradient of every subspace, by layer: large where mini-batches agree.

        variance is the mean squared deviation from the mean gradient; bias^2 is the squared norm of that
        mean less its own sampling error, variance / (effective number of gradients), and at least 0.
        """
        return self._by_layer(self._scores()) if self._sizes else {}

    def decide(self) -> bool:
        """Set the mask anew where `interval` gradients have come in since the last time; True if it changed.

        Adaptive: a subspace is free where it passes the threshold, and at least the best one of every
        layer is. Static: all subspaces of a layer are free where its best one passes; the other layers
        keep their pretrained values for good, and later calls change nothing.
        """
        if not self._observing or self._count == 0 or self._count % self.settings.interval:
            return False
        scores = self._scores()
        passing = self._passing(scores)
        before, self._free = self._free, []
        for span in self._spans():
            self._free += self._decide_layer(scores[span], passing[span])
        changes = zip(before, self._free, self._freed, strict=True)
        self._freed = [now and (freed or not was) for was, now, freed in changes]
        self._decided = True
        return self._free != before

    def silence(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the masked subspaces still in the step to come: call it last before `optimizer.step`.

        Their gradients become None, since with a zero gradient momentum would still move them. Their
        optimizer state is kept, and dropped when they are free again: it is out of date by then.
        """
        for values, free, freed in zip(self._parameters, self._free, self._freed, strict=True):
            for value in values:
                if not free:
                    value.grad = None
                elif freed:
                    optimizer.state.pop(value, None)
        self._freed = [False] * len(self._freed)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs to decide as this one would, as tensors (copies)."""
        return {
            "count": torch.tensor(self._count),
            "squared_weights": torch.tensor(self._squared_weights, dtype=torch.float64),
            "mean": self._mean.clone(),
            "variance": self._variance.clone(),
            "decided": torch.tensor(self._decided),
            "free": torch.tensor(self._free, dtype=torch.bool),
            "freed": torch.tensor(self._freed, dtype=torch.bool),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state of `state_dict`; UserError where it belongs to other adapter settings."""
        for name in ("mean", "variance"):
            expected, found = tuple(getattr(self, f"_{name}").shape), tuple(state[name].shape)
            if found != expected:
                raise UserError(
                    f"the checkpoint's layer mask has {name} of shape {found}, not {expected}: resume with "
                    "the adapter settings that it was made with."
                )
        self._count = int(state["count"])
        self._squared_weights = float(state["squared_weights"])
        self._mean = state["mean"].to(self._mean).clone()
        self._variance = state["variance"].to(self._variance).clone()
        self._decided = bool(state["decided"])
        self._free, self._freed = state["free"].tolist(), state["freed"].tolist()

    @property
    def _observing(self) -> bool:
        return bool(self._parameters) and (self.settings.kind == "adaptive" or self.calibrating)

    def _newest_weight(self) -> float:
        """Weight of the newest gradient: in a plain mean (static) or a bias-corrected running one."""
        if self.settings.kind == "static":
            return 1 / self._count
        return (1 - self.settings.momentum) / (1 - self.settings.momentum**self._count)

    def _scores(self) -> list[float]:
        energy = torch.stack([part.square().sum() for part in self._mean.split(self._sizes)])
        bias = (energy - self._variance * self._squared_weights).clamp(min=0)
        return (bias / (self._variance + _EPSILON)).tolist()

    def _passing(self, scores: list[float]) -> list[bool]:
        if self.settings.threshold_kind == "absolute":
            return [score >= self.settings.threshold for score in scores]
        best_first = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        passing = set(best_first[: round((1 - self.settings.threshold) * len(scores))])
        return [index in passing for index in range(len(scores))]

    def _decide_layer(self, scores: list[float], passing: list[bool]) -> list[bool]:
        if self.settings.kind == "static":
            return [any(passing)] * len(passing)
        best = scores.index(max(scores))
        return [passes or index == best for index, passes in enumerate(passing)]

    def _spans(self) -> list[slice]:
        ends = [0]
        for subspaces in self._subspaces.values():
            ends.append(ends[-1] + subspaces)
        return [slice(start, end) for start, end in pairwise(ends)]

    def _by_layer(self, values: list[T]) -> dict[str, list[T]]:
        return {name: values[span] for name, span in zip(self._subspaces, self._spans(), strict=True)}
