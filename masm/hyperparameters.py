"""The hyper-parameters that the search finds, and what they make of the settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from masm.settings import LOSS_NUMBERS, Losses, Optimisation, Settings
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


def read_best(settings: Settings) -> Hyperparameters:
    """The best point, from the search's best.json; what is not searched is as the settings say.

    Raises:
        UserError: the file is missing or not of the search's form.
    """
    path = settings.root / "search" / "best.json"
    try:
        best = Hyperparameters(**json.loads(path.read_text())["hyperparameters"])
        return Hyperparameters.of({name: getattr(best, name) for name in settings.searched}, settings.losses)
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
            attribution=settings.losses.attribution,
            **{name: getattr(found, name) for name in LOSS_NUMBERS},
        ),
    )
