"""The Ray Train loop against a bare PyTorch loop, and two workers against one.

- `ray.of_plain`: images/s of the stage's own loop (Trainer, Reporter, a checkpoint at the end of each turn, images in
  Ray's object store) in one worker, over those of a plain for-loop in a process of its own: the same model, images in
  memory, the same augmentation, forward, backward, clipping and step, the same validation images scored at the end of
  each turn, and nothing else.
- `ray.two_over_one`: images/s of two workers over one at the same global batch. Its limit on this machine is
  `ray.limit`: what two plain processes that know nothing of each other reach together, with half of the batch each,
  over one. `ray.two_of_limit` is the ratio of both.

The starter backbone at its 64 px with masm's subspaces, one thread and the niceness of Ray's workers everywhere. All
take turns of one epoch, in one process tree; the first turn, of more than 20 steps, does not count. Ratios are of the
rounds' minima, and `_paired` the median of each round's own, whose sides follow each other.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray.train
import torch
import typer
from torch.nn import functional

from masm.adapters import AdapterSettings, MaskSettings
from masm.backbones import STARTER, load_folder
from masm.cluster import connected
from masm.data.augment import augment, to_float
from masm.data.camera import compress
from masm.data.frames import Frames, load_frames
from masm.data.procedural import draw_face
from masm.data.sampling import epoch_pairs
from masm.data.stored import decode
from masm.data.table import write_table
from masm.detector import Detector
from masm.objective import Place
from masm.recipe import Recipe
from masm.settings import Ray
from masm.training import Trainer
from pipelines.shared_images import share
from pipelines.workers import Group, Reporter, replicate, report, run_workers
from tests.benchmarks.data_loader import FRAMES_PER_VIDEO, table_rows
from tests.benchmarks.output import Figures, show

SIDE, BATCH, STEPS, FACES, VALIDATION = 64, 16, 24, 64, 2 * FRAMES_PER_VIDEO
ROUNDS = 8
NICENESS = 15
"""Of Ray's workers."""
ADAPTER = AdapterSettings("masm", 8, 4, "interleaved", ("q", "k", "v", "proj", "fc1", "fc2"))
RECIPE = Recipe(
    epochs=1000, batch_size=BATCH, lr=1e-4, head_lr=1e-4, weight_decay=0.01, clip_norm=1.0, lambda_orth=0.0,
    lambda_spec=0.0, mask=MaskSettings("none", "batch", "quantile", 0.0, 20, 0.9), seed=0,
)  # fmt: skip
WORKERS = {"one": 1, "two": 2}
PLAIN = {"plain": 1, "pair": 2}
SIDES = ("plain", "one", "two", "pair")
"""In the order of their turns."""


@dataclass(frozen=True)
class Turns:
    """Processes take turns by files in a folder: `SIDE.TURN` lets a side go, `SIDE.TURN.RANK` holds its seconds."""

    folder: Path
    count: int

    def wait(self, side: str, turn: int) -> None:
        """Wait until it is the side's turn."""
        parent = multiprocessing.parent_process()
        while not (self.folder / f"{side}.{turn}").exists():
            if parent is not None and not parent.is_alive():
                sys.exit("the benchmark was ended")
            time.sleep(0.002)

    def done(self, side: str, turn: int, rank: int, seconds: float) -> None:
        """The side's process of this rank has had its turn."""
        partial = self.folder / f".{side}.{turn}.{rank}"
        partial.write_text(str(seconds))
        partial.rename(self.folder / f"{side}.{turn}.{rank}")

    def give(self, side: str, turn: int, ranks: int) -> float:
        """Let a side have its turn; seconds until the last of its processes is done."""
        written = [self.folder / f"{side}.{turn}.{rank}" for rank in range(ranks)]
        (self.folder / f"{side}.{turn}").touch()
        while not all(path.exists() for path in written):
            time.sleep(0.01)
        return max(float(path.read_text()) for path in written)


def make_detector() -> Detector:
    """The starter backbone with the demo's kind of subspaces."""
    return Detector.build(load_folder(STARTER, SIDE), ADAPTER, seed=0)


def make_frames(folder: Path) -> tuple[Frames, Frames]:
    """As many drawn faces as a turn's steps take, and a few to validate on."""
    images = [compress(draw_face(0, person, 0, SIDE).image, 90) for person in range(FACES)]
    write_table(folder / "train", table_rows(images, BATCH * STEPS), [])
    write_table(folder / "val", ({**row, "split": "val"} for row in table_rows(images, VALIDATION)), [])
    return load_frames([folder / "train"], "train"), load_frames([folder / "val"], "val")


def plain_process(turns: Turns, frames: Frames, validation: Frames, rank: int) -> None:
    """Two bare loops: over whole batches where it has the turn alone, over half of each where another has the rest."""
    os.nice(NICENESS - os.nice(0))
    torch.set_num_threads(1)
    images, labels = decode(frames.images), torch.from_numpy(frames.labels).float()
    unseen = decode(validation.images)
    model = make_detector()
    optimizer = torch.optim.AdamW(model.parameter_groups(RECIPE.lr, RECIPE.head_lr, RECIPE.weight_decay), fused=True)
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for turn in range(turns.count):
        plan = epoch_pairs(frames, BATCH, RECIPE.seed, turn).reshape(-1, BATCH)
        for side, processes in PLAIN.items():
            if rank < processes:
                turns.wait(side, turn)
                before = time.perf_counter()
                model.train()
                for rows in plan[:, : BATCH // processes]:
                    inputs = augment(images[rows], rows, RECIPE.seed, turn)
                    loss = functional.binary_cross_entropy_with_logits(model(inputs), labels[rows])
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(parameters, RECIPE.clip_norm, foreach=True)
                    optimizer.step()
                with torch.inference_mode():
                    model.eval()(to_float(unseen[rank::processes]))
                turns.done(side, turn, rank, time.perf_counter() - before)


def ray_worker(config: dict[str, Any]) -> None:
    """The stage's loop, an epoch and its checkpoint at a turn."""
    turns, side, context = config["turns"], config["side"], ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    trainer = Trainer(make_detector(), RECIPE, *config["frames"], place, replicate)
    for turn in range(turns.count):
        turns.wait(side, turn)
        before = time.perf_counter()
        line = trainer.run_epoch(Reporter(config["queue"], turn) if place.rank == 0 else lambda *_: None)
        report(line, trainer.save)
        turns.done(side, turn, place.rank, time.perf_counter() - before)


def measure(folder: Path, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each side's turns, the first left out."""
    turns = Turns(folder / "turns", 1 + rounds)
    turns.folder.mkdir()
    frames, validation = make_frames(folder)
    spawn = multiprocessing.get_context("spawn")
    given = (turns, frames, validation)
    plain = [spawn.Process(target=plain_process, args=(*given, rank), daemon=True) for rank in (0, 1)]
    for process in plain:
        process.start()
    ranks = PLAIN | WORKERS
    with connected(Ray(address=None, storage=str(folder)), cpus=sum(WORKERS.values())):
        shared = share((frames, validation), fetch=lambda: None)
        with ThreadPoolExecutor(len(WORKERS)) as pool:
            runs = [
                pool.submit(
                    run_workers,
                    ray_worker,
                    {"turns": turns, "side": side, "frames": shared},
                    Group(f"bench-{side}", str(folder / "storage"), workers, max_failures=0),
                    side,
                    turns.count * STEPS,
                )
                for side, workers in WORKERS.items()
            ]
            taken = [{side: turns.give(side, turn, ranks[side]) for side in SIDES} for turn in range(turns.count)]
            for run in runs:
                run.result()
    for process in plain:
        process.join()
    return {side: np.array([turn[side] for turn in taken[1:]]) for side in SIDES}


def main(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    rounds: Annotated[int, typer.Option(help="turns of each side")] = ROUNDS,
) -> None:
    """Measure the training loop."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), rounds)
    figures: Figures = {}
    minima = {side: own.min() for side, own in times.items()}
    for suffix, seconds in (("", minima), ("_paired", times)):
        two_over_one, limit = seconds["one"] / seconds["two"], seconds["plain"] / seconds["pair"]
        figures[f"ray.of_plain{suffix}"] = float(np.median(seconds["plain"] / seconds["one"]))
        figures[f"ray.two_over_one{suffix}"] = float(np.median(two_over_one))
        figures[f"ray.limit{suffix}"] = float(np.median(limit))
        figures[f"ray.two_of_limit{suffix}"] = float(np.median(two_over_one / limit))
    figures |= {f"ray.images_per_s_{side}": BATCH * STEPS / np.min(own) for side, own in times.items()}
    show("Training, one thread a worker", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
