"""Weights out of a checkpoint that holds more than tensors, into a file that cannot bring code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from masm.backbones.checkpoint import CONTAINER, Checkpoint, NeedsCodeError, read_checkpoint
from masm.backbones.inspection import file_hash
from masm.errors import UserError

_SOURCE, _SOURCE_HASH = "masm.source", "masm.source_sha256"


def convert(source: Path, target: Path, run_code: bool) -> None:
    """Write the weights of a checkpoint as safetensors, with the name and sha256 of the file they came from.

    Args:
        source: what torch.save wrote.
        target: the .safetensors file to be written.
        run_code: read what is more than tensors, too, in a process of its own. That process runs as the same
            user, in a folder of its own and without this one's environment variables; it is no sandbox.

    Raises:
        NeedsCodeError: the file holds more than tensors, and `run_code` is not set.
        UserError: the file cannot be read, or the target cannot be written.
    """
    if target.suffix != ".safetensors" or target.exists():
        raise UserError(f"{target} must end with .safetensors and not be there: name another file to write.")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent} is no folder: make it, or name another file to write.")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            try:
                checkpoint = read_checkpoint(source)
            except NeedsCodeError:
                if not run_code:
                    raise
                checkpoint = _read_elsewhere(source, Path(folder))
            _write(checkpoint, Path(folder) / target.name)
            os.replace(Path(folder) / target.name, target)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{source} cannot be written as {target} ({type(error).__name__}: {error}): it takes a folder that can be "
            "written, and tensors that are neither sparse nor quantised."
        ) from error


def _write(checkpoint: Checkpoint, path: Path) -> None:
    tensors = {name: value.clone().contiguous() for name, value in checkpoint.tensors.items()}
    source = checkpoint.path
    save_file(tensors, path, {CONTAINER: checkpoint.container, _SOURCE: source.name, _SOURCE_HASH: file_hash(source)})
    path.chmod(0o644)  # safetensors writes it for its owner alone


def _read_elsewhere(source: Path, folder: Path) -> Checkpoint:
    """What `masm.backbones.unpickle` gets out of a checkpoint; of it, only tensors come back."""
    extracted = folder / "extracted.safetensors"
    command = [sys.executable, "-m", "masm.backbones.unpickle", str(source.resolve()), str(extracted.resolve())]
    modules = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": modules}, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{source} could not be unpickled ({reason}): what it needs must be importable here.")
    return replace(read_checkpoint(extracted), path=source)
