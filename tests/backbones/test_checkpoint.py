"""Weight files are read without running code from them, or refused in one sentence."""

from __future__ import annotations

import argparse
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from masm.backbones.checkpoint import NeedsCodeError, read_checkpoint
from masm.errors import UserError

TENSORS = {"cls_token": torch.arange(6.0), "blocks.0.weight": torch.eye(40)}


class Touching:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self.path,)


def saved(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("container", ["", "model", "state_dict"])
def test_tensors_come_back_with_their_container(tmp_path: Path, suffix: str, zipped: bool, container: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(saved({container: TENSORS, "epoch": 3} if container else TENSORS, zipped))
    found = read_checkpoint(path)
    assert found.container == container
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    wrapped = {f"{prefix}{name}": value for name, value in TENSORS.items()}
    torch.save(wrapped, tmp_path / "weights.pth")
    save_file(wrapped, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert read_checkpoint(tmp_path / name).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=1e-3), "argparse.Namespace"),
        (np.float64(0.5), "numpy"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_more_than_tensors_is_refused_with_the_way_out(
    tmp_path: Path, extra: object, named: str, zipped: bool
) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(saved({"model": TENSORS, "extra": extra}, zipped))
    with pytest.raises(NeedsCodeError, match="masm backbone convert") as caught:
        read_checkpoint(path)
    assert caught.value.found.startswith(named)
    assert str(path) in str(caught.value)


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "weights.pth")
    with pytest.raises(NeedsCodeError, match=r"\(torch\.nn\.modules\.linear\.Linear\)"):
        read_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle"])
def test_code_in_a_file_does_not_run(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    content = {"model": TENSORS, "extra": Touching(marker)}
    path.write_bytes(pickle.dumps(content) if kind == "bare pickle" else saved(content, kind == "zip"))
    with pytest.raises(UserError):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if kind != "bare pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the file would not have run code in the first place"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_an_error(tmp_path: Path, zipped: bool) -> None:
    content = saved({"model": TENSORS}, zipped)
    path = tmp_path / "weights.pth"
    for length in range(0, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"damaged|more than tensors"):  # a name may be cut to an unknown one
            read_checkpoint(path)


def test_a_cut_safetensors_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    for length in (0, 1, 8, 60, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="no readable safetensors"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", bytes(range(256)) * 8, b"\x00" * 99])
def test_what_is_no_checkpoint_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="fetch it anew"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, torch.zeros(2), {"model": {"lr": 1.0}}, {"model": {}}, {"net": TENSORS}]
)
def test_a_file_without_weights_is_an_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "weights.pth")


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(UserError, match=r"ends with \.safetensors"):
        read_checkpoint(tmp_path / "weights.onnx")
    with pytest.raises(UserError, match="are missing"):
        read_checkpoint(tmp_path)
