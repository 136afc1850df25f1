"""Unpickling a checkpoint, which runs any code that it brings: `python -m masm.backbones.unpickle FILE OUT`.

This is the one place where it is done, and a process of its own (`masm.backbones.conversion` starts it).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from masm.backbones.checkpoint import CONTAINER, find_weights
from masm.errors import UserError


def unpickle(source: Path, target: Path) -> None:
    """Write the tensors of a checkpoint as safetensors."""
    loaded = torch.load(source, map_location="cpu", weights_only=False)
    found = find_weights(loaded.state_dict() if isinstance(loaded, nn.Module) else loaded, source)
    # Copies, as safetensors takes no two tensors that share memory.
    tensors = {name: value.detach().clone().contiguous() for name, value in found.tensors.items()}
    save_file(tensors, target, {CONTAINER: found.container})


if __name__ == "__main__":
    try:
        unpickle(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(str(error))
