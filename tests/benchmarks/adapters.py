"""One training step of every method, in time and memory, against the least that any adapter must spend.

The limit is the same frozen backbone with gradients flowing to its first adapted layer and nothing else. A step
is forward, loss, backward, penalties, mask statistics, clipping, silencing and the optimizer's step. Steps run
interleaved, one of each method in a round; time ratios are those of the rounds' minima, and `_median` of their
medians. Memory is the peak of live tensor bytes: parameters, buffers, optimizer state and mask statistics, and
what a step makes besides (`tests.benchmarks.memory`).
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from masm.adapters import AdapterSettings, LayerMask, MaskSettings, SubspaceLinear, merge
from masm.adapters.cache import DecompositionCache
from masm.backbones import Backbone, build_backbone
from masm.detector import Detector
from masm.losses import classification_loss
from masm.optimisation import add_penalty, clip_gradients, make_optimizer
from tests.benchmarks.dense import dense_penalties, with_rebuilt_weights
from tests.benchmarks.memory import bytes_of, peak_of
from tests.benchmarks.output import Figures, show

METHODS = ("probe", "full", "layernorm", "lora", "effort", "masm")
TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")
SUBSPACES, RANK = 4, 2
LAMBDA = 1.0
MASK = MaskSettings("adaptive", "batch", "quantile", threshold=0.3, interval=20, momentum=0.9)


class Step:
    """A training step of one method that can be repeated.

    Args:
        detector: on its device.
        images: (B, 3, S, S) float32 in 0..1.
        dtype: of autocast; float32 runs without.
    """

    def __init__(self, detector: Detector, images: Tensor, dtype: torch.dtype) -> None:
        self.detector, self.images, self.dtype = detector.train(), images, dtype
        self.labels = torch.arange(len(images), device=images.device).remainder(2).float()
        self.layers: Mapping[str, SubspaceLinear] = detector.layers
        self.mask = LayerMask(self.layers if detector.adapter.method == "masm" else {}, MASK)
        self.optimizer = make_optimizer(detector, lr=1e-5, head_lr=1e-4, weight_decay=0.01)
        self.regularisation = 0.0
        """Seconds that the penalties and the mask's statistics took in the latest step."""

    def __call__(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.backward()
        before = now(self.images.device)
        self.mask.observe()
        self.penalise()
        self.regularisation = now(self.images.device) - before
        clip_gradients(self.optimizer, 1.0)
        self.mask.silence(self.optimizer)
        self.optimizer.step()
        self.mask.decide()

    def backward(self) -> None:
        """Gradients of the classification loss."""
        with autocast(self.images.device, self.dtype):
            loss = classification_loss(self.detector(self.images), self.labels)
        loss.backward()

    def penalise(self) -> None:
        """Add the penalties' gradients, where the method has any."""
        if self.detector.adapter.method == "masm":
            add_penalty(self.layers, LAMBDA, LAMBDA)

    def held(self) -> list[Tensor]:
        """The tensors that outlive a step."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        model = [*self.detector.parameters(), *self.detector.buffers()]
        return [*model, *state, *self.mask.state_dict().values(), self.images]


class Limit(Step):
    """Forward, and backward to the output of the first adapted layer."""

    def __init__(self, detector: Detector, images: Tensor, dtype: torch.dtype) -> None:
        super().__init__(detector, images, dtype)
        detector.requires_grad_(False)
        self._first: list[Tensor] = []
        detector.backbone.blocks[0].attn.qkv.register_forward_hook(self._begin)

    def __call__(self) -> None:
        """Take a step."""
        self.backward()
        self._first.clear()

    def _begin(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        self._first.append(output.requires_grad_())
        return output


class Dense(Step):
    """Rebuilt weights, with penalties from their dense definitions."""

    def __init__(self, detector: Detector, images: Tensor, dtype: torch.dtype) -> None:
        self._rebuilt = with_rebuilt_weights(detector.backbone)
        super().__init__(detector, images, dtype)

    def penalise(self) -> None:
        """Add the penalties' gradients."""
        dense_penalties(self._rebuilt, LAMBDA, LAMBDA).backward()


def now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Autocast to `dtype`; nothing for float32."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    before = now(device)
    call()
    return now(device) - before


def settings(method: str, backbone: str) -> AdapterSettings:
    """Total rank 8 on every target; `backbone` is only named in errors."""
    rank = SUBSPACES * RANK if method == "lora" else RANK
    return AdapterSettings(method, rank, SUBSPACES, "interleaved", TARGETS)


def build_steps(backbone: Backbone, images: Tensor, dtype: torch.dtype, cache: Path) -> dict[str, Step]:
    """A step of every method, and of the limit and the dense reference."""

    def detector(method: str) -> Detector:
        return Detector.build(backbone, settings(method, backbone.name), seed=0, cache=cache).to(images.device)

    steps: dict[str, Step] = {"limit": Limit(detector("probe"), images, dtype)}
    steps |= {method: Step(detector(method), images, dtype) for method in METHODS}
    return steps | {"masm_rebuilt_dense": Dense(detector("masm"), images, dtype)}


def measure_steps(steps: dict[str, Step], rounds: int, device: torch.device) -> Figures:
    """Times and peaks of the steps as ratios to the limit's, and what follows from them."""
    peaks, times, shares = {}, defaultdict(list), []
    for name, step in steps.items():
        step()  # makes the optimizer's state
        step.optimizer.zero_grad(set_to_none=True)
        peaks[name] = bytes_of(step.held()) + peak_of(step, device)
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(timed(step, device))
        shares.append(steps["masm"].regularisation / times["masm"][-1])
    least = {name: min(values) for name, values in times.items()}
    middle = {name: statistics.median(values) for name, values in times.items()}
    figures: Figures = {}
    for name in steps:
        if name != "limit":
            figures[f"{name}.time_ratio"] = least[name] / least["limit"]
            figures[f"{name}.time_ratio_median"] = middle[name] / middle["limit"]
            figures[f"{name}.memory_ratio"] = peaks[name] / peaks["limit"]
        figures[f"{name}.step_s"] = least[name]
        figures[f"{name}.images_per_s"] = len(steps[name].images) / middle[name]
        figures[f"{name}.peak_bytes"] = peaks[name]
    figures["masm.penalty_share"] = statistics.median(shares)
    figures["masm.speedup_over_dense"] = least["masm_rebuilt_dense"] / least["masm"]
    return figures


def measure_merged(backbone: Backbone, adapted: nn.Module, images: Tensor, dtype: torch.dtype, rounds: int) -> Figures:
    """Inference of the merged model as a ratio to plain timm's."""
    models = {"timm": backbone.model.to(images.device).eval(), "merged": merge(adapted).eval()}
    times = defaultdict(list)
    with torch.inference_mode(), autocast(images.device, dtype):
        for _ in range(rounds + 1):
            for name, model in models.items():
                times[name].append(timed(lambda model=model: model(images), images.device))
    return {"merged.of_timm": min(times["merged"][1:]) / min(times["timm"][1:])}


def measure_decomposition() -> Figures:
    """Seconds to decompose matrices of the sizes of ViT-L/14's 96 of attention, and to read them back."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(1024, 1024, generator=generator) for _ in range(96)]
    with tempfile.TemporaryDirectory() as folder:
        cache = DecompositionCache(Path(folder))

        def decompose() -> None:
            for weight in weights:
                cache(weight, SUBSPACES * RANK)

        return {f"decompose.{name}_s": timed(decompose, torch.device("cpu")) for name in ("first", "cached")}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    model: Annotated[str, typer.Option(help="timm's name of the backbone")] = "vit_base_patch16_224",
    batch: Annotated[int, typer.Option(help="images of a step")] = 4,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    threads: Annotated[int, typer.Option(help="of the processor")] = 2,
    rounds: Annotated[int, typer.Option(help="steps of each method")] = 7,
) -> None:
    """Measure all methods on one backbone with random weights, the merged model, and the decomposition."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind, place = getattr(torch, dtype), torch.device(device)
    backbone = Backbone(build_backbone(model, {}), (0.5,) * 3, (0.5,) * 3, model, {})
    side = backbone.model.patch_embed.img_size[0]
    images = torch.rand(batch, 3, side, side, device=place)
    with tempfile.TemporaryDirectory() as folder:
        steps = build_steps(backbone, images, kind, Path(folder))
    figures = measure_steps(steps, rounds, place)
    figures |= measure_merged(backbone, steps["masm"].detector.backbone, images, kind, rounds)
    figures |= measure_decomposition()
    show(f"One training step on {model}, {batch} images, {device}, {dtype}", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
