"""Decompositions kept on disk, shared by all processes of a machine."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masm.adapters.decompose import Triplets, smallest_triplets

KEPT = 64
"""Smallest triplets that an entry holds at least, so that one entry serves every K, r and grouping."""


class DecompositionCache:
    """`smallest_triplets` from a folder with one safetensors file for each weight, named by its content.

    Processes and threads may fill it at once: each writes a file of its own, and the last to rename it into place
    wins. An entry that is damaged, or a folder that cannot be written, costs a warning and a decomposition.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, weight: Tensor, count: int) -> Triplets:
        """The `count` smallest singular triplets of `weight` (m, n), in float64 on the CPU."""
        path = self.folder / f"{content_key(weight)}.safetensors"
        triplets = _read(path, weight.shape)
        if triplets is None or len(triplets.s) < count:
            triplets = smallest_triplets(weight, min(max(count, KEPT), min(weight.shape)))
            _write(path, triplets)
        first = len(triplets.s) - count
        return Triplets(triplets.U[:, first:], triplets.s[first:], triplets.V[:, first:])


def content_key(weight: Tensor) -> str:
    """SHA-256 of a weight's data type, shape and bytes, in hex digits."""
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(_content(weight))
    return digest.hexdigest()


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("U", "s", "V"):
        digest.update(_content(tensors[name]))
    return digest.hexdigest()


def _read(path: Path, shape: torch.Size) -> Triplets | None:
    """An entry; None where there is none that is sound."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("U", "s", "V")}
            sound = (file.metadata() or {}).get("sha256") == _checksum(tensors)
    except (SafetensorError, OSError):
        sound = False
    if not sound:
        warnings.warn(f"{path} is damaged: the weight of shape {tuple(shape)} is decomposed anew.", stacklevel=2)
        return None
    return Triplets(**tensors)


def _write(path: Path, triplets: Triplets) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    tensors = vars(triplets)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"sha256": _checksum(tensors)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{path.parent} cannot keep decompositions ({error}): each run makes its own.", stacklevel=2)
