"""The search for near-duplicates among one million perceptual hashes, at the radius that params.yaml sets.

Hashes of faces are no random bits: all faces have eyes. So the million is drawn with the frequencies and correlations
of the bits of portraits' hashes (a Gaussian copula), which makes some bands much fuller than random bits would.
"""

from __future__ import annotations

import time
import tracemalloc
from typing import Annotated

import numpy as np
import typer
from scipy.stats import norm

from masm.data.duplicates import Nearest, near_pairs
from masm.data.procedural import draw_face
from masm.data.table import perceptual_hash
from masm.settings import load_settings
from tests.benchmarks.output import Figures, show
from tests.conftest import ROOT

COUNT = 1_000_000
PLACES = 4
PORTRAITS = 400


def figures() -> Figures:
    """Seconds for a million hashes, and bytes of memory for each hash at their peak, besides the hashes."""
    radius = load_settings(ROOT / "params.yaml").checks.radius
    hashes = face_like_hashes(COUNT, seed=0)
    place = np.random.default_rng(1).integers(0, PLACES, COUNT)
    begin = time.perf_counter()
    search(hashes, place, radius)
    seconds = time.perf_counter() - begin
    tracemalloc.start()
    search(hashes, place, radius)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"neardup.seconds_1m": seconds, "neardup.bytes_per_hash": peak / COUNT}


def search(hashes: np.ndarray, place: np.ndarray, radius: int) -> Nearest:
    """For each hash the nearest one in another place."""
    nearest = Nearest(len(hashes))
    for pairs in near_pairs(hashes, radius):
        nearest.add(pairs, place[pairs.first] != place[pairs.second])
    return nearest


def face_like_hashes(count: int, seed: int) -> np.ndarray:
    """(count,) uint64 whose bits are as frequent, and as correlated, as those of drawn portraits."""
    portraits = [int(perceptual_hash(draw_face(seed, person, 0, 96).image), 16) for person in range(PORTRAITS)]
    bits = np.unpackbits(np.array(portraits, ">u8").view(np.uint8).reshape(-1, 8), axis=1)
    rng = np.random.default_rng(seed)
    jittered = bits + 1e-6 * rng.standard_normal(bits.shape)  # a bit that never changes has no correlation
    values, vectors = np.linalg.eigh(np.corrcoef(jittered.T))
    factor = (vectors * np.sqrt(values.clip(0))).T
    threshold = norm.ppf(1 - bits.mean(axis=0).clip(1e-4, 1 - 1e-4))
    chunks = np.array_split(np.arange(count), 10)
    drawn = [rng.standard_normal((len(chunk), 64)) @ factor > threshold for chunk in chunks]
    return np.packbits(np.concatenate(drawn), axis=1).view(">u8").ravel().astype(np.uint64)


def main(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Measure and print."""
    show("Near-duplicates among 1,000,000 perceptual hashes", figures(), as_json)


if __name__ == "__main__":
    typer.run(main)
