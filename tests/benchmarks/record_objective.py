"""Record what the search's benchmark replays: a whole grid of hyper-parameters, trained on the London protocol.

    python -m tests.benchmarks.record_objective runs/london/params.yaml

Each point trains as a trial of `search` does, on the train datasets, and is scored on the `validate` datasets after
every epoch; the test datasets have no part in it. To be quick, it sees one frame of each video, of two thirds of the
training's photographs. One line for each epoch goes to the CSV as soon as the point is done, in an order that is
shuffled; started again, the recording goes on with the points that are missing.
"""

from __future__ import annotations

import csv
import itertools
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track

from masm.data.frames import Frames, load_frames
from masm.evaluation import macro_video_auc, scored_frames
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe
from masm.metrics import area_under_curve
from masm.scoring import score
from masm.settings import Settings, load_settings
from masm.training import Trainer

RECORDING = Path(__file__).with_name("london_objective.csv")
GRID: dict[str, tuple[Any, ...]] = {
    "lr": (1e-3, 3e-3, 1e-2),
    "mask_kind": ("none", "adaptive"),
    "mask_threshold": (0.1, 0.3),  # where there is a mask
    "rank": (4, 16),
    "subspaces": (2, 4),
    "lambda_orth": (0.001, 0.1),
    "lambda_spec": (0.1, 10.0),  # 0.001 and 0.1 gave ten of eleven points the same score to 0.006
}
EPOCHS, FRAMES, INTERVAL = 3, 1, 5
COLUMNS = [*GRID, "epoch", "score", "frame_auc", "val_auc", "loss", "seconds"]
Point = dict[str, Any]


def grid() -> list[Point]:
    """Every point once, shuffled; without a mask it has no threshold."""
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    for point in points:
        if point["mask_kind"] == "none":
            del point["mask_threshold"]
    unique = list({named(point): point for point in points}.values())
    random.Random(0).shuffle(unique)
    return unique


def named(point: Mapping[str, Any]) -> tuple[str, ...]:
    """A point as the CSV says it."""
    return tuple(str(point.get(name, "")) for name in GRID)


def train(point: Point, settings: Settings) -> Iterator[dict[str, float]]:
    """Train one point; after each epoch its scores, and the seconds that the epoch took."""
    settings = settings.model_copy(update={"mask": settings.mask.model_copy(update={"interval": INTERVAL})})
    optimisation = settings.search.optimisation.model_copy(update={"epochs": EPOCHS})
    found = Hyperparameters.of(point, settings.losses, GRID)
    before = time.perf_counter()
    tables = [settings.table(name) for name in settings.with_role("train")]
    frames, validation = (load_frames(tables, split, FRAMES) for split in ("train", "val"))
    recipe = make_recipe(settings, optimisation, found)
    trainer = Trainer(build_detector(settings, found), recipe, two_thirds(frames), validation)
    while not trainer.finished:
        line = trainer.run_epoch()
        scores = score(trainer.detector, settings, settings.with_role("validate"))
        rows = scored_frames(scores)
        yield {
            "epoch": trainer.epoch,
            "score": macro_video_auc(scores),
            "frame_auc": area_under_curve(rows["label"].to_numpy(), rows["score"].to_numpy()),
            "val_auc": line["val_auc"],
            "loss": line["loss"],
            "seconds": time.perf_counter() - before,
        }
        before = time.perf_counter()


def two_thirds(frames: Frames) -> Frames:
    """The frames of two of three source recordings; a real stays with the fakes that were made from it."""
    kept = np.flatnonzero(frames.sources % 3 < 2)
    names = ("labels", "methods", "datasets", "videos", "sources", "landmarks")
    columns = {name: getattr(frames, name)[kept] for name in names}
    return replace(frames, images=frames.images.take(kept), **columns)  # type: ignore[attr-defined]


def recorded(path: Path) -> set[tuple[str, ...]]:
    """The points that the CSV has, as its text says them; the header is written where there is no file."""
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    with path.open() as file:
        return {named(row) for row in csv.DictReader(file)}


def main(
    params: Annotated[Path, typer.Argument(help="params.yaml of a workspace whose tables are ingested")],
    path: Annotated[Path, typer.Option(help="the CSV")] = RECORDING,
) -> None:
    """Record the points that are missing, one after the other, with one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    settings, known = load_settings(params), recorded(path)
    missing = [point for point in grid() if named(point) not in known]
    for point in track(missing, "recording", console=Console(stderr=True)):
        rows = [{**point, **figures} for figures in train(point, settings)]
        with path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    typer.run(main)
