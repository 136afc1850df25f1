"""The files of a checkpoint."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from masm.checkpoints import read_checkpoint, write_checkpoint


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts a file system")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    weights = {"head.weight": torch.randn(2, 3), "bias": torch.arange(3)}
    write_checkpoint(tmp_path, {"model": weights, "optimiser": {}}, {"epoch": 2})
    parts, progress = read_checkpoint(tmp_path, torch.device("cpu"))
    assert progress == {"epoch": 2}
    assert parts.keys() == {"model"}
    assert all(torch.equal(parts["model"][name], value) for name, value in weights.items())


def test_a_full_folder_is_named(small: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as full:
        write_checkpoint(small, {"model": {"weight": torch.zeros(100_000)}}, {})
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(small))
