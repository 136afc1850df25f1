"""The files of a checkpoint: named groups of tensors (safetensors), and what is no tensor (JSON)."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSORS, _PROGRESS = "state.safetensors", "progress.json"


def write_checkpoint(folder: Path, parts: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, Any]) -> None:
    """Write groups of tensors, whose names have no dot, and the rest.

    Raises:
        OSError: the folder is full, among other things.
    """
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / _TENSORS)
    except SafetensorError as error:  # which has the system's number in its words alone
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from None
    (folder / _PROGRESS).write_text(json.dumps(progress))


def read_checkpoint(folder: Path, device: torch.device) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_checkpoint` wrote; a group without tensors is left out."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(folder / _TENSORS, device=str(device)).items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    return dict(parts), json.loads((folder / _PROGRESS).read_text())
