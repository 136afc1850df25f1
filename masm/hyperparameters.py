"""The hyper-parameters that the search finds, and what they make of the settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masm.adapters import AdapterSettings, MaskSettings
from masm.backbones import load_backbone
from masm.data.augment import Augmentation
from masm.detector import Detector
from masm.errors import UserError
from masm.losses import LossSettings
from masm.settings import Losses, Optimisation, Settings
from masm.training import Recipe


@dataclass(frozen=True)
class Hyperparameters:
    """One point of `search.space`; 0 stands for what a method or its losses do not have."""

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

    @classmethod
    def of(cls, point: Mapping[str, Any], losses: Losses) -> Hyperparameters:
        """The hyper-parameters of `point`, and those of the losses that were not searched as `losses` says."""
        nothing = cls(rank=0, subspaces=0, mask_threshold=0.0, lambda_orth=0.0, lambda_spec=0.0)
        return replace(nothing, **{**losses.numbers(), **point})


def read_best(path: Path) -> Hyperparameters:
    """The best point, from the search's best.json.

    Raises:
        UserError: the file is missing or not of the search's form.
    """
    try:
        return Hyperparameters(**json.loads(path.read_text())["hyperparameters"])
    except OSError:
        raise UserError(f"{path} is missing: run `dvc repro search` first.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what the search writes ({error}): run `dvc repro -f search`.") from None


def build_detector(settings: Settings, found: Hyperparameters | None) -> Detector:
    """The adapted backbone with an untrained head; the frozen-backbone probe where `found` is None."""
    weights = settings.backbone.weights
    source = weights if weights in ("starter", "hub") else settings.path(weights)
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


def make_recipe(settings: Settings, optimisation: Optimisation, found: Hyperparameters) -> Recipe:
    """The training run that these settings ask for; masm alone has a mask."""
    mask = MaskSettings(
        kind=settings.mask.kind if settings.adapter.method == "masm" else "none",
        over=settings.mask.over,
        threshold_kind=settings.mask.threshold_kind,
        threshold=found.mask_threshold,
        interval=settings.mask.interval,
        momentum=settings.mask.momentum,
    )
    return Recipe(
        epochs=optimisation.epochs,
        batch_size=optimisation.batch_size,
        lr=optimisation.lr,
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
            triplet_weight=found.triplet_weight,
            margin=found.margin,
            alignment_weight=found.alignment_weight,
            uniformity_weight=found.uniformity_weight,
            attribution=settings.losses.attribution,
            attribution_weight=found.attribution_weight,
        ),
    )
