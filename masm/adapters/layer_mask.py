"""Which artifact subspaces may move, decided from the signal-to-noise ratio of their gradients.

Stated in the abstracts of MASM (arXiv 2601.01041): v1 has a mask that regulates the layers' updates by
the learning state of each artifact subspace, v3 finds the forgery-sensitive layers by the bias and
variance of layer-wise gradients. The statistics, the score and the decision below are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor

from masm.adapters.settings import MaskSettings
from masm.adapters.subspace import SubspaceLinear
from masm.errors import UserError

T = TypeVar("T")

_ALL = "batch"
_EPSILON = 1e-30  # 0 / 0 is 0, and real scores do not depend on the scale of the loss


class LayerMask:
    """A mask over (layer, subspace): a masked subspace stays in the forward pass and does not move.

    Per training step: zero_grad, backward of the classification loss alone (averaged over workers),
    `observe`, add the penalties' gradients, clip, `silence(optimizer)`, optimizer.step, `decide`. Before the
    first step, and while the mask is `calibrating`: zero_grad, backward, `observe`, `decide`.

    Where the statistics run over methods, no training step is observed: every `interval` steps (and while
    calibrating) one batch of each method is, by `observe(method)`, and then `decide` is called.

    Workers that see the same averaged gradients hold the same mask: the decision is a function of the
    statistics alone, and ties go to the earlier subspace.

    Args:
        layers: the adapted layers, as `adapt` returns them.
        settings: how to decide.
    """

    def __init__(self, layers: Mapping[str, SubspaceLinear], settings: MaskSettings) -> None:
        self.settings = settings
        self._subspaces = {name: len(layer.subspaces) for name, layer in layers.items()}
        self._factors = [piece for layer in layers.values() for piece in layer.pieces()]
        self._streams: dict[str, _Stream] = {}  # by method, or one of all batches
        self._decided = False
        self._free = [True] * len(self._factors)
        self._freed = [False] * len(self._factors)  # since the last `silence`

    @property
    def free(self) -> dict[str, list[bool]]:
        """Which subspaces may move, by layer."""
        return self._by_layer(self._free)

    @property
    def calibrating(self) -> bool:
        """Whether a static mask still wants gradients of the pretrained model, before any step is taken."""
        return self.settings.kind == "static" and not self._decided and bool(self._factors)

    @torch.no_grad()
    def observe(self, method: str = _ALL) -> None:
        """Take in the gradients that the factors hold, those of masked subspaces too; float32.

        `method` is the forgery that they were taken on, where the statistics run over methods.
        """
        if self.observing:
            if method not in self._streams:
                self._streams[method] = _Stream.empty(self._factors)
            momentum = None if self.settings.kind == "static" else self.settings.momentum
            self._streams[method].take([cast(Tensor, value.grad).float() for value in self._factors], momentum)

    def scores(self) -> dict[str, list[float]]:
        """bias^2 / variance of the gradient of every subspace, by layer: large where the gradients agree.

        The gradients are those of mini-batches, or the (running) mean gradient of each method. variance is their
        mean squared deviation from their mean; bias^2 is the squared norm of that mean less its own sampling
        error, variance / (effective number of gradients), and at least 0.
        """
        return self._by_layer(self._scores()) if self._factors else {}

    def decide(self) -> bool:
        """Set the mask anew where enough gradients have come in since the last time; True if it changed.

        Enough is `interval` of them, and of methods a round of all.

        Adaptive: a subspace is free where it passes the threshold, and at least the best one of every
        layer is. Static: all subspaces of a layer are free where its best one passes; the other layers
        keep their pretrained values for good, and later calls change nothing.

        Raises:
            UserError: the statistics run over methods, and there is only one.
        """
        if not self.observing or not self._enough:
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
        for factors, free, freed in zip(self._factors, self._free, self._freed, strict=True):
            if not free:
                factors.grad = None
            elif freed:
                optimizer.state.pop(factors, None)
        self._freed = [False] * len(self._freed)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs to decide as this one would, as tensors (copies)."""
        state = {
            "decided": torch.tensor(self._decided),
            "free": torch.tensor(self._free, dtype=torch.bool),
            "freed": torch.tensor(self._freed, dtype=torch.bool),
        }
        for method, stream in self._streams.items():
            state |= {f"{method}/{name}": value for name, value in stream.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state of `state_dict`; UserError where it belongs to other adapter settings."""
        if len(state["free"]) != len(self._free):
            raise _other_settings(f"{len(state['free'])} subspaces", f"{len(self._free)}")
        self._streams = {}
        for method in [key.removesuffix("/mean") for key in state if key.endswith("/mean")]:
            prefix = f"{method}/"
            stream = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            self._streams[method] = _Stream.restored(self._factors, stream)
        self._decided = bool(state["decided"])
        self._free, self._freed = state["free"].tolist(), state["freed"].tolist()

    @property
    def observing(self) -> bool:
        """Whether it wants gradients: an adaptive mask always does, a static one before its decision."""
        return bool(self._factors) and (self.settings.kind == "adaptive" or self.calibrating)

    @property
    def _enough(self) -> bool:
        counts = [stream.count for stream in self._streams.values()]
        if self.settings.over == "batch":
            return bool(counts) and counts[0] % self.settings.interval == 0
        whole_round = bool(counts) and min(counts) == max(counts)
        return whole_round and (self.settings.kind == "adaptive" or sum(counts) >= self.settings.interval)

    def _scores(self) -> list[float]:
        streams = list(self._streams.values())
        if not streams:
            return [0.0] * len(self._factors)
        if self.settings.over == "batch":
            return _signal_to_noise(streams[0].mean, streams[0].variance, streams[0].squared_weights)
        if len(streams) == 1:
            raise UserError(
                f"mask.over = 'method' compares forgery methods, but there is only {next(iter(self._streams))!r} to "
                "train on: give another training set, or set mask.over to batch."
            )
        return _signal_to_noise(*_between([stream.mean for stream in streams]), 1 / len(streams))

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


@dataclass
class _Stream:
    """Gradients taken in one after the other: their weighted mean, and the variance around it.

    `mean` is by subspace, `variance` (subspaces,) the mean squared deviation; `squared_weights` is the sum of the
    gradients' squared weights in the mean: 1 / their effective number.
    """

    count: int
    squared_weights: float
    mean: list[Tensor]
    variance: Tensor

    @classmethod
    def empty(cls, factors: Sequence[Tensor]) -> _Stream:
        """No gradient yet."""
        mean = [torch.zeros_like(value, dtype=torch.float32, requires_grad=False) for value in factors]
        return cls(0, 0.0, mean, torch.zeros(len(mean), device=mean[0].device))

    def take(self, gradients: Sequence[Tensor], momentum: float | None) -> None:
        """Take in one gradient: into a plain mean, or with `momentum` into a bias-corrected running one."""
        self.count += 1
        weight = 1 / self.count if momentum is None else (1 - momentum) / (1 - momentum**self.count)
        deviation = torch._foreach_sub(list(gradients), self.mean)
        torch._foreach_add_(self.mean, deviation, alpha=weight)
        self.variance = (1 - weight) * (self.variance + weight * _energies(deviation))
        self.squared_weights = (1 - weight) ** 2 * self.squared_weights + weight**2

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all."""
        return {
            "count": torch.tensor(self.count),
            "squared_weights": torch.tensor(self.squared_weights, dtype=torch.float64),
            "mean": torch.cat([value.flatten() for value in self.mean]),
            "variance": self.variance.clone(),
        }

    @classmethod
    def restored(cls, factors: Sequence[Tensor], state: Mapping[str, Tensor]) -> _Stream:
        """From `state_dict`; UserError where its sizes are not those of `factors`."""
        stream = cls.empty(factors)
        sizes = [value.numel() for value in stream.mean]
        if state["mean"].shape != (sum(sizes),):
            raise _other_settings(f"a mean of shape {tuple(state['mean'].shape)}", f"({sum(sizes)},)")
        for value, stored in zip(stream.mean, state["mean"].split(sizes), strict=True):
            value.copy_(stored.view_as(value))
        stream.count, stream.squared_weights = int(state["count"]), float(state["squared_weights"])
        stream.variance.copy_(state["variance"])
        return stream


def _between(means: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], Tensor]:
    """The mean of some gradients, by subspace, and the variance (subspaces,) around it."""
    mean = [torch.stack(values).mean(dim=0) for values in zip(*means, strict=True)]
    distances = [_energies(torch._foreach_sub(list(values), mean)) for values in means]
    return mean, torch.stack(distances).mean(dim=0)


def _signal_to_noise(mean: Sequence[Tensor], variance: Tensor, squared_weights: float) -> list[float]:
    bias = (_energies(mean) - variance * squared_weights).clamp(min=0)
    return (bias / (variance + _EPSILON)).tolist()


def _energies(values: Sequence[Tensor]) -> Tensor:
    """Squared norms (n,) of n tensors."""
    return torch.stack(list(torch._foreach_norm(list(values)))).square()


def _other_settings(found: str, expected: str) -> UserError:
    return UserError(
        f"the checkpoint's layer mask has {found}, not {expected}: resume with the adapter settings that it was made "
        "with."
    )
