"""How far perceptual hashes of copies are from each other, and those of strangers: what `checks.radius` is chosen by.

Over the face tables of a workspace: real crops of the last dataset against copies of them, and all frames of two
people in two places against each other. The figures are shares of pairs within 2, 4 and 6 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import pandas as pd
import typer

from masm.data.camera import compress, decompress
from masm.data.leakage import hash_bits
from masm.data.table import perceptual_hash, read_table
from masm.settings import Settings, load_settings
from tests.benchmarks.output import Figures, show

DISTANCES = (2, 4, 6)
EVERY = 3


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """To `factor` times the size and back."""
    side = len(image)
    small = cv2.resize(image, (round(factor * side),) * 2, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


def cut(image: np.ndarray, share: float) -> np.ndarray:
    """Without this share of each side, at the former size."""
    side = len(image)
    away = round(share * side)
    return cv2.resize(image[away:-away, away:-away], (side, side))


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg_70": lambda image: decompress(compress(image, 70)),
    "jpeg_20": lambda image: decompress(compress(image, 20)),
    "half_size": lambda image: scaled(image, 0.5),
    "quarter_size": lambda image: scaled(image, 0.25),
    "brighter": lambda image: np.clip(1.2 * image, 0, 255).astype(np.uint8),
    "cut_2_percent": lambda image: cut(image, 0.02),
    "mirrored": lambda image: image[:, ::-1].copy(),
}


def copies(settings: Settings) -> Figures:
    """Share of copies within each distance of their original, by kind of copy."""
    rows = read_table(settings.table(list(settings.datasets)[-1]), ["label", "image"]).to_pandas()
    images = [decompress(image) for image in rows["image"][rows["label"] == 0][::EVERY]]
    original = hash_bits([perceptual_hash(image) for image in images])
    figures = {}
    for name, copied in COPIES.items():
        distance = np.bitwise_count(original ^ hash_bits([perceptual_hash(copied(image)) for image in images]))
        figures |= {f"{name}.within_{limit}": float((distance <= limit).mean()) for limit in DISTANCES}
    return figures


def strangers(settings: Settings) -> Figures:
    """Pairs of frames of two people in two places within each distance, of a million of them."""
    parts = []
    for name, entry in settings.datasets.items():
        rows = read_table(settings.table(name), ["split", "identity", "phash"]).to_pandas()
        parts.append(rows.assign(place=entry.role + "/" + rows["split"]))
    frames = pd.concat(parts)
    hashes = hash_bits(frames["phash"].tolist())
    place, person = (pd.factorize(frames[name])[0] for name in ("place", "identity"))
    counts = np.zeros(65, np.int64)
    for index in range(len(hashes) - 1):
        rest = slice(index + 1, None)
        pairs = (place[rest] != place[index]) & (person[rest] != person[index])
        counts += np.bincount(np.bitwise_count(hashes[rest] ^ hashes[index])[pairs], minlength=65)
    return {
        f"strangers.per_million_within_{limit}": 1e6 * counts[: limit + 1].sum() / counts.sum() for limit in DISTANCES
    }


def main(
    params: Annotated[Path, typer.Option(help="of a workspace with face tables")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure and print."""
    settings = load_settings(params)
    show("Distances of perceptual hashes", copies(settings) | strangers(settings), as_json)


if __name__ == "__main__":
    typer.run(main)
