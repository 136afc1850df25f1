"""The losses over pairs on a large batch, in time and memory, against the backbone's step that gives its features.

256 features of 768 numbers are what 32 steps of a ViT-B/16 on 8 images give; the limit is 32 times such a step,
forward and backward with all weights learning. Losses and steps run interleaved; shares are those of the rounds'
minima, `_median` of their medians. Memory is the peak of live tensor bytes of a loss's forward and backward pass.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from masm.adapters import AdapterSettings
from masm.backbones import Backbone, build_backbone
from masm.detector import Detector
from masm.losses import LossSettings, classification_loss, metric_loss
from tests.benchmarks.adapters import timed
from tests.benchmarks.memory import peak_of
from tests.benchmarks.output import Figures, show

BATCH, IMAGES = 256, 8
TRIPLETS = ("batch_all", "batch_hard", "semi_hard", "soft_margin", "real_anchored")
LOSSES = {kind: LossSettings(triplet=kind, triplet_weight=1.0, margin=0.2) for kind in TRIPLETS} | {
    "alignment": LossSettings(alignment_weight=1.0),
    "uniformity": LossSettings(uniformity_weight=1.0),
}


def loss_step(settings: LossSettings, features: Tensor) -> Callable[[], None]:
    """Forward and backward of a loss on features (B, D), half of them real."""
    groups = torch.arange(len(features), device=features.device) % 2

    def step() -> None:
        features.grad = None
        metric_loss(features, groups, settings).backward()

    return step


def backbone_step(model: str, device: torch.device) -> Callable[[], None]:
    """Forward and backward of a detector with random weights that all learn."""
    backbone = Backbone(build_backbone(model, {}), (0.5,) * 3, (0.5,) * 3, model, {})
    adapter = AdapterSettings("full", 0, 0, "interleaved", ())
    detector = Detector.build(backbone, adapter, seed=0).to(device).train()
    side = backbone.model.patch_embed.img_size[0]
    images, labels = torch.rand(IMAGES, 3, side, side, device=device), torch.arange(IMAGES, device=device) % 2

    def step() -> None:
        detector.zero_grad(set_to_none=True)
        classification_loss(detector(images), labels).backward()

    return step


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    model: Annotated[str, typer.Option(help="timm's name of the backbone")] = "vit_base_patch16_224",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int, typer.Option(help="of the processor")] = 2,
    rounds: Annotated[int, typer.Option(help="steps of each")] = 7,
) -> None:
    """Measure every loss over pairs, and the backbone's step."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = torch.device(device)
    features = torch.randn(BATCH, 768, device=place, requires_grad=True)
    steps = {name: loss_step(settings, features) for name, settings in LOSSES.items()}
    steps["backbone"] = backbone_step(model, place)
    figures: Figures = {}
    for name, step in steps.items():
        step()
        if name != "backbone":
            figures[f"{name}.memory_mb"] = peak_of(step, place) / 2**20
    times = defaultdict(list)
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(timed(step, place))
    limit = {how.__name__: BATCH // IMAGES * how(times["backbone"]) for how in (min, statistics.median)}
    for name in LOSSES:
        figures[f"{name}.step_share"] = min(times[name]) / limit["min"]
        figures[f"{name}.step_share_median"] = statistics.median(times[name]) / limit["median"]
        figures[f"{name}.ms"] = 1e3 * min(times[name])
    figures["backbone.step_s"] = min(times["backbone"])
    show(f"Losses over the pairs of {BATCH} features, {model}, {device}", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
