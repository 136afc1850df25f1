"""What the adapters can be told: frozen, and valid from the moment they exist."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from masm.errors import UserError

METHODS = ("masm", "effort", "lora", "layernorm", "full", "probe")
GROUPINGS = ("interleaved", "contiguous")
TARGETS = ("q", "k", "v", "proj", "fc1", "fc2", "fc1_g", "fc1_x")
MASK_KINDS = ("none", "adaptive", "static")
THRESHOLD_KINDS = ("quantile", "absolute")
MASK_SOURCES = ("batch", "method")


@dataclass(frozen=True)
class AdapterSettings:
    """How a backbone is adapted; a method takes of the other settings what it has, and ignores the rest.

    Attributes:
        method: "masm" (arXiv 2601.01041); "effort" (ICML 2025, arXiv 2411.15633), which is masm with one
            subspace of rank 1 on q, k, v and proj; "lora" (arXiv 2106.09685); "layernorm", scale and shift
            of every normalisation layer under a head on the L2-normalised feature (GenD, WACV 2026); "full"
            fine-tuning; or "probe", the frozen backbone under a linear head.
        rank: of masm and lora: rank r of each artifact subspace, or of a matrix's update. In masm it counts the
            trainable side: with K subspaces the K r smallest singular triplets of a weight are trained. 0 is
            the probe.
        subspaces: of masm: number K of artifact subspaces in each adapted matrix. 0 is the probe.
        grouping: of masm: how the K r triplets, largest first, are dealt out: "contiguous" (runs of r) or
            "interleaved" (one to each subspace in turn).
        targets: of masm and lora: which matrices of every transformer block are adapted, of q, k, v, proj,
            fc1, fc2, and in gated blocks fc1_g (the gate's) and fc1_x in place of fc1.

    Raises:
        UserError: a value outside of these.
    """

    method: str
    rank: int
    subspaces: int
    grouping: str
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("grouping", self.grouping, GROUPINGS)
        _at_least("rank", self.rank, 1 if self.method == "lora" else 0)
        _at_least("subspaces", self.subspaces, 0)
        for target in self.targets:
            _one_of("targets", target, TARGETS)
        if len(set(self.targets)) != len(self.targets):
            raise UserError(f"adapter.targets = {list(self.targets)} names a matrix twice: name each once.")
        if self.method in ("masm", "lora") and self.rank and not self.targets:
            raise UserError(f"adapter.targets is empty: name at least one of {', '.join(TARGETS)}.")

    @property
    def subspace_plan(self) -> AdapterSettings | None:
        """The settings of the subspaces that this method trains; None where it has none."""
        if self.method == "effort":
            return replace(self, method="masm", rank=1, subspaces=1, targets=("q", "k", "v", "proj"))
        return self if self.method == "masm" and self.subspaces * self.rank else None

    @property
    def total_rank(self) -> int:
        """K r, the number of trained triplets of each adapted matrix."""
        plan = self.subspace_plan
        return plan.subspaces * plan.rank if plan else 0

    @property
    def unit_features(self) -> bool:
        """Whether the head sees features of length 1."""
        return self.method == "layernorm"

    @property
    def merged(self) -> AdapterSettings:
        """What describes the model once its adapted weights are written back into plain layers."""
        return replace(self, method="probe") if self.method in ("masm", "effort", "lora") else self


@dataclass(frozen=True)
class MaskSettings:
    """Which subspaces may move (the criterion of MASM's v3 abstract; every choice here is ours).

    Attributes:
        kind: "none"; "adaptive" (running statistics, decided again and again during training); or
            "static" (decided once, on gradients taken before training).
        over: whose gradients are compared: "batch" (of the mini-batches) or "method" (the mean gradient of each
            forgery method, on batches of its own: one round of all methods before each decision).
        threshold_kind: "quantile" frees the top 1 - threshold of all subspaces, "absolute" those with a
            score of at least the threshold.
        threshold: in [0, 1] for a quantile, at least 0 for an absolute score.
        interval: number of observed gradients before each decision (adaptive) or the only one (static);
            over methods, the steps between two decisions. At least 2: one gradient has no variance.
        momentum: of the adaptive running averages, in (0, 1); 0.95 remembers about 40 gradients.

    Raises:
        UserError: a value outside of these.
    """

    kind: str
    over: str
    threshold_kind: str
    threshold: float
    interval: int
    momentum: float

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, MASK_KINDS, section="mask")
        _one_of("over", self.over, MASK_SOURCES, section="mask")
        _one_of("threshold_kind", self.threshold_kind, THRESHOLD_KINDS, section="mask")
        _at_least("interval", self.interval, 2, section="mask")
        limit = 1.0 if self.threshold_kind == "quantile" else math.inf
        if not (math.isfinite(self.threshold) and 0 <= self.threshold <= limit):
            raise UserError(
                f"mask.threshold = {self.threshold} is no {self.threshold_kind}: give one in [0, {limit:g}]."
            )
        if not 0 < self.momentum < 1:
            raise UserError(f"mask.momentum = {self.momentum}: give a number between 0 and 1.")


def _one_of(name: str, value: str, allowed: Collection[str], section: str = "adapter") -> None:
    if value not in allowed:
        raise UserError(f"{section}.{name} = {value!r} is not known: give one of {', '.join(allowed)}.")


def _at_least(name: str, value: int, least: int, section: str = "adapter") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{section}.{name} = {value!r}: give a whole number of at least {least}.")
