"""Small trainers, for tests of what trains."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch

from masm.adapters import AdapterSettings, MaskSettings
from masm.backbones import Backbone, build_backbone
from masm.data.frames import Frames
from masm.detector import Detector
from masm.losses import LossSettings
from masm.objective import ALONE, Place
from masm.recipe import Recipe
from masm.training import Trainer
from tests.data.tables import no_landmarks

ARGUMENTS = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
ADAPTER = AdapterSettings("masm", rank=2, subspaces=2, grouping="interleaved", targets=("q", "v", "fc1"))
ALL_LOSSES = LossSettings(
    triplet="batch_all", labels="method", triplet_weight=2.0, margin=0.3, alignment_weight=0.1, uniformity_weight=0.5,
    attribution="method", attribution_weight=0.5,
)  # fmt: skip
ADAPTIVE = MaskSettings("adaptive", "batch", "quantile", threshold=0.5, interval=3, momentum=0.8)
RECIPE = Recipe(
    epochs=4, batch_size=8, lr=1e-2, head_lr=3e-2, weight_decay=0.01, clip_norm=1.0,
    lambda_orth=0.1, lambda_spec=0.1, mask=ADAPTIVE, seed=5,
)  # fmt: skip
METHODS = MaskSettings("adaptive", "method", "quantile", threshold=0.5, interval=3, momentum=0.8)


def make_detector(adapter: AdapterSettings = ADAPTER) -> Detector:
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    backbone = Backbone(build_backbone(name, ARGUMENTS), (0.5,) * 3, (0.5,) * 3, name, ARGUMENTS)
    return Detector.build(backbone, adapter, seed=1)


def make_frames(count: int, seed: int) -> Frames:
    """Noise, a little rougher where it is fake: learnable, but not in one step."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = []
    for label in labels:
        noise = rng.normal(128, 30, (16, 16, 3))
        pixels = noise if label else cv2.GaussianBlur(noise, (0, 0), 0.8)
        images.append(cv2.imencode(".png", np.clip(pixels, 0, 255).astype(np.uint8))[1].tobytes())
    own, one = np.arange(count), np.zeros(count, np.int64)  # each a video of its own, all of one dataset
    methods, points = np.where(labels == 1, "swap", "real"), no_landmarks(count)
    return Frames(images, labels, methods, datasets=one, videos=own, sources=own // 2, landmarks=points)


def two_methods(frames: Frames) -> Frames:
    fakes = frames.labels == 1
    methods = np.where(fakes, np.where(np.cumsum(fakes) % 2 == 1, "swap", "reenact"), "real")
    return replace(frames, methods=methods)


def make_trainer(recipe: Recipe = RECIPE, place: Place = ALONE, **how: object) -> Trainer:
    frames, validation = two_methods(make_frames(48, 1)), two_methods(make_frames(24, 2))
    return Trainer(make_detector(), recipe, frames, validation, place, **how)  # type: ignore[arg-type]


def trainable(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.detector.named_parameters() if p.requires_grad}
