"""What `masm serve` costs over the bare model, how long clients wait, and whether a swap of versions fails a request.

The model is ViT-B/16 with random weights, the images are crops of 224 px as JPEG files, the service is a process of
its own as `masm serve` starts it, with MLflow on SQLite in a temporary folder. Throughput is that of full batches in
steady state: from the first of a window's answers to the last, over as many crops; the bare model's is that of its
forward passes on a batch of floats, on the same device and with all processors. Both run in every round, one after the
other.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import typer

from masm.adapters import AdapterSettings
from masm.backbones import Backbone, build_backbone
from masm.data.faces import CropProfile
from masm.detector import Detector
from masm.serving.scorer import Scorer
from masm.settings import Settings
from tests.benchmarks.output import Figures, show
from tests.serving.service import Load, configure, make_settings, register, set_champion, started
from tests.serving.workspace import own_address

MODEL = "vit_base_patch16_224"
SIDE = 224
PROFILE = CropProfile("given", SIDE, 1.3, None, frames=32)
CLIENTS = (1, 8, 32)
SWAP_SECONDS = 30.0
"""To wait for the other version, at most."""


def make_detector(seed: int) -> Detector:
    """ViT-B/16 with random weights and a head."""
    torch.manual_seed(seed)
    backbone = Backbone(build_backbone(MODEL, {}), (0.5,) * 3, (0.5,) * 3, MODEL, {})
    return Detector.build(backbone, AdapterSettings("probe", 0, 0, "interleaved", ()), seed)


def crop() -> bytes:
    """A JPEG of smooth noise, about as large as a face's."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def bare_rate(detector: Detector, batch: torch.Tensor, passes: int) -> float:
    """Crops per second of forward passes."""
    with torch.inference_mode():
        before = time.perf_counter()
        for _ in range(passes):
            detector(batch).cpu()
        return passes * len(batch) / (time.perf_counter() - before)


def window(address: str, image: bytes, clients: int, seconds: float) -> Load:
    """Load by some clients for a while."""
    with Load(address, image, clients) as load:
        time.sleep(seconds)
    assert not load.failures
    assert {status for _, _, status, _ in load.answers} == {200}
    return load


def rate(load: Load, batch: int) -> float:
    """Crops per second from the first batch of answers to the last: what is in work at the end fills batches, too."""
    times = sorted(at for at, *_ in load.answers)
    return (len(times) - batch) / (times[-1] - times[batch - 1])


def measure(address: str, image: bytes, detector: Detector, batch: int, rounds: int, seconds: float) -> Figures:
    """Throughput of both, and what clients wait."""
    pixels = torch.rand(batch, 3, SIDE, SIDE, device=detector.device)
    window(address, image, max(CLIENTS), 2)
    bare_rate(detector, pixels, 1)
    served, bare, waits = [], [], defaultdict(list)
    for _ in range(rounds):
        bare.append(bare_rate(detector, pixels, 4))
        for clients in CLIENTS:
            load = window(address, image, clients, seconds)
            waits[clients] += [seconds for _, seconds, _, _ in load.answers]
        served.append(rate(load, batch))
    figures = {
        "serving.of_model": max(served) / max(bare),
        "serving.of_model_median": statistics.median(served) / statistics.median(bare),
        "serving.crops_per_s": statistics.median(served),
        "model.crops_per_s": statistics.median(bare),
    }
    for clients, values in waits.items():
        figures[f"serving.p50_ms_{clients}"] = float(np.percentile(values, 50)) * 1000
        figures[f"serving.p99_ms_{clients}"] = float(np.percentile(values, 99)) * 1000
    return figures


def measure_swap(settings: Settings, address: str, image: bytes) -> Figures:
    """Failed requests while the alias moves under load, and seconds until the other version answers."""
    with Load(address, image, 8) as load:
        time.sleep(3)
        moved = time.perf_counter()
        set_champion(settings, "2")
        while time.perf_counter() < moved + SWAP_SECONDS and not _answers(load, "2"):
            time.sleep(0.1)
        time.sleep(2)
    failed = len(load.failures) + sum(status != 200 for _, _, status, _ in load.answers)
    return {"swap.failed": failed, "swap.seconds": min(_answers(load, "2"), default=np.inf) - moved}


def _answers(load: Load, version: str) -> list[float]:
    """When a version answered."""
    good = [(at, body) for at, _, status, body in list(load.answers) if status == 200]
    return [at for at, body in good if body["model"]["version"] == version]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    batch: Annotated[int, typer.Option(help="crops of a pass")] = 8,
    rounds: Annotated[int, typer.Option(help="of all measurements")] = 3,
    seconds: Annotated[float, typer.Option(help="of each window of load")] = 8,
) -> None:
    """Register two versions, serve one, measure, and move the alias to the other."""
    torch.set_num_threads(os.cpu_count() or 1)  # as the service's one replica does
    with tempfile.TemporaryDirectory() as folder, own_address():
        settings = configure(make_settings(Path(folder)), batch_size=batch)
        for seed in (1, 2):
            register(settings, make_detector(seed), Path(folder, f"detector{seed}"), PROFILE)
        set_champion(settings, "1")
        detector = Scorer(Path(folder, "detector1")).detector
        image = crop()
        with started(settings) as address:
            figures = measure(address, image, detector, batch, rounds, seconds)
            figures |= measure_swap(settings, address, image)
    show(f"masm serve with {MODEL}, batches of {batch}", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
