"""Scoring from a face table against the bare forward pass, its memory, and the bootstrap's time.

- `scoring.of_forward`: frames/s of all that `evaluate` does from the table's files to the scores file (reading,
  decoding, the forward pass, parts on disk, the check against the table), over those of the forward pass alone on the
  same batches, decoded and in memory. ViT-B/16 at 224 px with random weights on drawn faces; both ways by turns, from
  the rounds' minima, and `_median` from their medians.
- `scoring.memory_1m_over_10k`: peak USS of a fresh process that scores a million frames, over that of 10,000, by the
  starter backbone at 32 px, where it is quickest. The table repeats 64 faces, in large shards, so that every batch
  holds the same images as the one before and has the same logits: by default one batch in 64 goes through the backbone
  and the others get its logits. All else is done for each of the million frames; `--every 1` spares nothing.
- `bootstrap.seconds`: 10,000 draws of the AUC of 5,000 videos, the least of three.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import psutil
import torch
import typer

from masm.adapters import AdapterSettings
from masm.backbones import STARTER, Backbone, build_backbone
from masm.backbones.loading import load_folder
from masm.data.augment import to_float
from masm.data.camera import compress
from masm.data.parts import plan
from masm.data.procedural import draw_face
from masm.data.stored import decoded, in_order, stored_images
from masm.data.table import table_shards, write_table
from masm.detector import Detector
from masm.metrics import Sample, bootstrap_areas
from masm.scores import Work, write_scores
from masm.scoring import score_parts
from masm.settings import Settings
from tests.benchmarks.data_loader import draw_images, table_rows
from tests.benchmarks.output import Figures, show
from tests.benchmarks.rounds import by_turns
from tests.data.tables import FORGED, make_settings

THREADS, ROUNDS = 2, 3
SIDE, BATCH, FRAMES = 224, 32, 64
SMALL_SIDE, SMALL_BATCH, FACES = 32, 128, 64
SHARD_FRAMES, SHARDS, FEW = 100_000, 10, 10_000
EVERY = 64
VIDEOS, DRAWS = 5000, 10_000
PLAIN = AdapterSettings("probe", 0, 0, "interleaved", ("q",))


def bench_settings(root: Path, batch: int) -> Settings:
    """A workspace with one test dataset, as `table_rows` names it."""
    datasets = {"bench": {"role": "test", **FORGED}}
    return make_settings(root, datasets, evaluate__batch_size=batch, evaluate__robustness={"frames": 0})


def score_table(settings: Settings, detector: Detector) -> None:
    """What the stage does with one model: every part on disk, and the parts put together."""
    parts = plan(settings, ["bench"])
    with tempfile.TemporaryDirectory(dir=settings.root) as folder:
        work = Work(Path(folder))
        for part, scores in score_parts(detector, settings, parts):
            work.keep("bench", part, scores)
        write_scores(settings.root / "scores.parquet", settings, {"bench": parts}, work)


def base_detector() -> Detector:
    """ViT-B/16 with random weights."""
    arguments: dict[str, Any] = {"img_size": SIDE}
    model = build_backbone("vit_base_patch16_224", arguments)
    backbone = Backbone(model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "vit_base_patch16_224", arguments)
    return Detector.build(backbone, PLAIN, seed=0).eval()


@torch.inference_mode()
def forward(detector: Detector, batches: list[torch.Tensor]) -> None:
    """The bare forward pass."""
    for batch in batches:
        detector(batch)


def measure_speed(root: Path) -> Figures:
    """Scoring from the table against the forward pass."""
    settings = bench_settings(root, BATCH)
    write_table(settings.table("bench"), table_rows(draw_images(), FRAMES), [])
    images, detector = stored_images([settings.table("bench")]), base_detector()
    batches = [to_float(pixels) for pixels in decoded(images, in_order(FRAMES, BATCH))]
    ways: dict[str, Callable[[], None]] = {
        "forward": lambda: forward(detector, batches),
        "scoring": lambda: score_table(settings, detector),
    }
    least, middle = by_turns(ways, ROUNDS)
    return {
        "scoring.of_forward": least["forward"] / least["scoring"],
        "scoring.of_forward_median": middle["forward"] / middle["scoring"],
        "scoring.frames_per_s": FRAMES / least["scoring"],
    }


def sparing(detector: Detector, every: int) -> Detector:
    """The detector, but of batches that are alike it computes one in `every` and repeats its logits."""
    compute, calls, kept = detector.forward, 0, torch.empty(0)

    def repeat(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls, kept
        if calls % every == 0 or len(kept) < len(images):
            kept = compute(images)
        calls += 1
        return kept[: len(images)]

    detector.forward = repeat  # type: ignore[method-assign]
    return detector


def peak_memory(root: Path, every: int) -> tuple[int, float]:
    """Peak USS in bytes of this process while it scores the table in a workspace, and the seconds that it takes."""
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(1)
    settings = bench_settings(root, SMALL_BATCH)
    detector = sparing(Detector.build(load_folder(STARTER, SMALL_SIDE), PLAIN, seed=0), every)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, psutil.Process().memory_full_info().uss)

    watcher, before = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    score_table(settings, detector)
    done.set()
    watcher.join()
    return peak, time.perf_counter() - before


def small_images() -> list[bytes]:
    """JPEG bytes of `FACES` drawn faces."""
    return [compress(draw_face(0, person, 0, SMALL_SIDE).image, 90) for person in range(FACES)]


def measure_memory(root: Path, every: int) -> Figures:
    """Peak USS of scoring a million frames over that of 10,000, each in a process of its own."""
    few, many = (bench_settings(root / name, SMALL_BATCH) for name in ("few", "many"))
    write_table(few.table("bench"), table_rows(small_images(), FEW), [])
    write_table(many.table("bench"), table_rows(small_images(), SHARD_FRAMES), [])
    written = table_shards(many.table("bench"))
    for copy in range(1, SHARDS):
        for number, shard in enumerate(written, copy * len(written)):
            os.link(shard, shard.with_name(f"faces-{number:05d}.parquet"))
    peaks = {}
    for settings in (few, many):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[settings.root.name] = pool.submit(peak_memory, settings.root, every).result()
    return {
        "scoring.memory_1m_over_10k": peaks["many"][0] / peaks["few"][0],
        "scoring.peak_bytes": peaks["many"][0],
        "scoring.memory_frames_per_s": SHARDS * SHARD_FRAMES / peaks["many"][1],
    }


def measure_bootstrap() -> Figures:
    """The seconds that the bootstrap takes."""
    rng = np.random.default_rng(0)
    labels = np.arange(VIDEOS) % 2
    sample = Sample(labels, rng.normal(labels), np.array([f"video {index}" for index in range(VIDEOS)], object))
    times = []
    for _ in range(ROUNDS):
        before = time.perf_counter()
        bootstrap_areas([sample], DRAWS, np.random.default_rng(0))
        times.append(time.perf_counter() - before)
    return {"bootstrap.seconds": min(times)}


MEASURES = ("speed", "memory", "bootstrap")


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    every: Annotated[int, typer.Option(help="of how many alike batches one goes through the small backbone")] = EVERY,
    only: Annotated[str | None, typer.Option(help=f"one of {', '.join(MEASURES)}")] = None,
) -> None:
    """Measure scoring and the bootstrap."""
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(1)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        if only in (None, "speed"):
            figures |= measure_speed(Path(folder) / "speed")
        if only in (None, "memory"):
            figures |= measure_memory(Path(folder) / "memory", every)
        if only in (None, "bootstrap"):
            figures |= measure_bootstrap()
    show(f"Scoring, {THREADS} threads", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
