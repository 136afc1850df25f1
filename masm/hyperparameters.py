"""The hyper-parameters that the search finds, and what they make of the settings."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masm.adapters import AdapterSettings, MaskSettings
from masm.backbones import STARTER, load_backbone
from masm.backbones.inspection import file_hash
from masm.data.augment import Augmentation
from masm.detector import Detector
from masm.errors import UserError
from masm.losses import LossSettings
from masm.recipe import Recipe
from masm.settings import LOSS_NUMBERS, Losses, MaskKind, Optimisation, Settings


@dataclass(frozen=True)
class Hyperparameters:
    """One point of `search.space`; 0 stands for what a method or its losses do not have.

    None of `lr` and `mask_kind` stands for what is not searched: it is as `train`, `search.optimisation` and `mask`
    say.
    """

    rank: int
    subspaces: int
    mask_threshold: float
    lambda_orth: float
    lambda_spec: float
    triplet_weight: float = 0.0
    margin: float = 0.0
    alignment_weight: float = 0.0
    uniformity_weight: float = 0.0
    attribution_weight: float = 0.0
    lr: float | None = None
    mask_kind: MaskKind | None = None

    @classmethod
    def of(cls, point: Mapping[str, Any], losses: Losses, searched: Collection[str] = ()) -> Hyperparameters:
        """The hyper-parameters of `point`, and the numbers of the losses that are not searched as `losses` says.

        Args:
            point: name -> value.
            losses: the settings.
            searched: names of what is searched; those that a condition left out of `point` are 0.
        """
        nothing = cls(rank=0, subspaces=0, mask_threshold=0.0, lambda_orth=0.0, lambda_spec=0.0)
        fixed = {name: value for name, value in losses.numbers().items() if name not in searched}
        return replace(nothing, **{**fixed, **point})


def read_best(settings: Settings) -> Hyperparameters:
    """The best point, from the search's best.json; what is not searched is as the settings say.

    Raises:
        UserError: the file is missing or not of the search's form.
    """
    path = settings.root / "search" / "best.json"
    try:
        best = Hyperparameters(**json.loads(path.read_text())["hyperparameters"])
        point = {name: getattr(best, name) for name in settings.searched}
        return Hyperparameters.of(point, settings.losses, settings.searched)
    except OSError:
        raise UserError(f"{path} is missing: run `dvc repro search` first.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what the search writes ({error}): run `dvc repro -f search`.") from None


def weights_digest(settings: Settings) -> str:
    """The SHA-256 of the backbone's weight file, for names of work in progress; "hub" for what timm downloads, which
    its name stands for.

    Raises:
        UserError: the file cannot be read.
    """
    source = _weights_source(settings)
    if source == "hub":
        return "hub"
    path = STARTER / "model.safetensors" if source == "starter" else Path(source)
    try:
        return file_hash(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): set backbone.weights to a weight file.") from None


def _weights_source(settings: Settings) -> str | Path:
    """`backbone.weights` as `load_backbone` takes it."""
    weights = settings.backbone.weights
    return weights if weights in ("starter", "hub") else settings.path(weights)


def build_detector(settings: Settings, found: Hyperparameters | None) -> Detector:
    """The adapted backbone with an untrained head; the frozen-backbone probe where `found` is None."""
    source = _weights_source(settings)
    backbone = load_backbone(settings.backbone.name, source, settings.crop.size, settings.backbone.layout)
    adapter = AdapterSettings(
        method="probe" if found is None else settings.adapter.method,
        rank=0 if found is None else found.rank,
        subspaces=0 if found is None else found.subspaces,
        grouping=settings.adapter.grouping,
        targets=settings.adapter.targets,
    )
    cache = settings.adapter.cache
    return Detector.build(backbone, adapter, settings.seed, cache and settings.path(cache))


def mask_kind(settings: Settings, found: Hyperparameters) -> MaskKind:
    """The kind of the layer mask; masm alone has one."""
    return (found.mask_kind or settings.mask.kind or "none") if settings.adapter.method == "masm" else "none"


def _rate(optimisation: Optimisation, found: Hyperparameters) -> float:
    """The learning rate of the backbone, which stands in one of the two."""
    rate = found.lr or optimisation.lr
    assert rate is not None, "the settings have it where it is not searched"
    return rate


def make_recipe(settings: Settings, optimisation: Optimisation, found: Hyperparameters) -> Recipe:
    """The training run that these settings ask for; what is searched is as `found` says."""
    mask = MaskSettings(
        kind=mask_kind(settings, found),
        over=settings.mask.over,
        threshold_kind=settings.mask.threshold_kind,
        threshold=found.mask_threshold,
        interval=settings.mask.interval,
        momentum=settings.mask.momentum,
    )
    return Recipe(
        epochs=optimisation.epochs,
        batch_size=optimisation.batch_size,
        lr=_rate(optimisation, found),
        head_lr=optimisation.head_lr,
        weight_decay=optimisation.weight_decay,
        clip_norm=optimisation.clip_norm,
        lambda_orth=found.lambda_orth,
        lambda_spec=found.lambda_spec,
        mask=mask,
        seed=settings.seed,
        augmentation=Augmentation(**optimisation.augmentation.model_dump()),
        losses=LossSettings(
            triplet=settings.losses.triplet,
            labels=settings.losses.labels,
            attribution=settings.losses.attribution,
            **{name: getattr(found, name) for name in LOSS_NUMBERS},
        ),
        precision=optimisation.precision,
        accumulation=optimisation.accumulation,
        activation_checkpointing=optimisation.activation_checkpointing,
    )
