"""The training loader against the bare decode of the same bytes, and against a folder of PNG files.

All three give shuffled uint8 batches of the same 224 px faces, drawn, exposed and stored as JPEG of quality 90:

- the loader: `training_batches` over a face table on disk, from the epoch's plan to the batch;
- the bare decode: the table's bytes held in memory, in the same batches, by the same decoder and threads;
- the folder, in the field's style: a DataLoader with as many worker processes, `cv2.imread` of PNG files of the
  same pixels, each made a (3, H, W) tensor.

They run interleaved; ratios are of speeds, from the rounds' minima, and `_median` from their medians. Memory is
the peak USS of a process that reads a whole epoch, once from a table of 10,000 frames and once of 100,000.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import psutil
import torch
import typer
from torch.utils.data import DataLoader, Dataset

from masm.data.batches import training_batches
from masm.data.camera import CAMERAS, compress, expose
from masm.data.frames import load_frames
from masm.data.procedural import draw_face
from masm.data.sampling import epoch_pairs
from masm.data.table import write_table
from tests.benchmarks.output import Figures, show
from tests.benchmarks.rounds import by_turns
from tests.data.tables import row

SIDE, BATCH, THREADS = 224, 32, 2
FACES, FRAMES, FRAMES_PER_VIDEO = 64, 8192, 16
FEW, MANY = 10_000, 100_000
ROUNDS = 5


def draw_images() -> list[bytes]:
    """JPEG bytes of `FACES` drawn faces with a camera's noise."""
    rng = np.random.default_rng(0)
    faces = (draw_face(0, person, 0, SIDE).image for person in range(FACES))
    return [compress(expose(face, CAMERAS["compact"], rng), 90) for face in faces]


def table_rows(images: list[bytes], count: int) -> Iterator[dict[str, Any]]:
    """`count` frames of videos, real and fake by turns."""
    for frame in range(count):
        video = frame // FRAMES_PER_VIDEO
        method = ("real", "swap")[video % 2]
        yield row("bench", method, f"{video // 2:05d}", frame % FRAMES_PER_VIDEO, images[frame % len(images)])


class PngFolder(Dataset[torch.Tensor]):
    """A folder of PNG files as the field reads them."""

    def __init__(self, folder: Path, images: list[bytes]) -> None:
        self.paths = [folder / f"{number:06d}.png" for number in range(len(images))]
        for path, image in zip(self.paths, images, strict=True):
            cv2.imwrite(str(path), cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def bare_decode(images: list[bytes], batches: list[np.ndarray]) -> None:
    """Decode each batch into an array of its own."""

    def decode(rows: np.ndarray) -> np.ndarray:
        batch = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
        for place, index in enumerate(rows):
            batch[place] = cv2.imdecode(np.frombuffer(images[index], np.uint8), cv2.IMREAD_COLOR_RGB)
        return batch

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(decode, batches):
            pass


def measure_speed(images: list[bytes], folder: Path) -> Figures:
    """Speeds of the three as ratios, and of the loader in frames/s."""
    write_table(folder / "bench", table_rows(images, FRAMES), [])
    frames = load_frames([folder / "bench"], "train")
    held = list(frames.images)
    plan = list(epoch_pairs(frames, BATCH, seed=0, epoch=0).reshape(-1, BATCH))
    (folder / "png").mkdir()
    loader = DataLoader(
        PngFolder(folder / "png", held), BATCH, shuffle=True, num_workers=THREADS, persistent_workers=True
    )

    def exhaust(batches: Any) -> None:
        for _ in batches:
            pass

    ways: dict[str, Callable[[], None]] = {
        "loader": lambda: exhaust(training_batches(frames, BATCH, seed=0, epoch=0)),
        "decode": lambda: bare_decode(held, plan),
        "png": lambda: exhaust(loader),
    }
    least, middle = by_turns(ways, ROUNDS)
    return {
        "loader.of_decode": least["decode"] / least["loader"],
        "loader.of_decode_median": middle["decode"] / middle["loader"],
        "loader.of_png_folder": least["png"] / least["loader"],
        "loader.of_png_folder_median": middle["png"] / middle["loader"],
        "loader.frames_per_s": len(plan) * BATCH / middle["loader"],
    }


def peak_memory(table: Path) -> int:
    """Peak USS in bytes of this process while it reads an epoch of a table."""
    torch.set_num_threads(THREADS)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, psutil.Process().memory_full_info().uss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in training_batches(load_frames([table], "train"), BATCH, seed=0, epoch=0):
        pass
    done.set()
    watcher.join()
    return peak


def measure_memory(images: list[bytes], folder: Path) -> Figures:
    """Peak USS of reading many frames over that of few, each in a process of its own."""
    peaks = {}
    for count in (FEW, MANY):
        write_table(folder / str(count), table_rows(images, count), [])
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[count] = pool.submit(peak_memory, folder / str(count)).result()
    return {"loader.memory_100k_over_10k": peaks[MANY] / peaks[FEW], "loader.peak_bytes": peaks[MANY]}


def figures() -> Figures:
    """All figures of the loader."""
    torch.set_num_threads(THREADS)
    cv2.setNumThreads(1)
    images = draw_images()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "speed").mkdir()
        return measure_speed(images, Path(folder) / "speed") | measure_memory(images, Path(folder))


def main(as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False) -> None:
    """Measure the loader."""
    show(f"The training loader, {SIDE} px, {THREADS} threads", figures(), as_json)


if __name__ == "__main__":
    typer.run(main)
