"""Weight files are read without running code from them, or refused in one sentence."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
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


class Calling:
    """Asks the shell for nothing when it is unpickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, ("true",)


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
    assert named in caught.value.found
    assert str(path) in str(caught.value)


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "weights.pth")
    with pytest.raises(NeedsCodeError, match=r"torch\.nn\.modules\.linear\.Linear.*masm backbone convert"):
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


@pytest.mark.parametrize("key", [1, None, (2, 3)])
def test_tensors_without_names_are_no_weights(tmp_path: Path, key: object) -> None:
    torch.save({"model": {key: torch.zeros(2)}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_all_that_would_run_is_named(tmp_path: Path, zipped: bool) -> None:
    """A harmless name in front hides no other; of the older format torch tells the first alone."""
    path = tmp_path / "weights.pth"
    content = {"model": TENSORS, "args": argparse.Namespace(lr=1e-3), "extra": Calling()}
    path.write_bytes(saved(content, zipped))
    with pytest.raises(NeedsCodeError) as caught:
        read_checkpoint(path)
    assert caught.value.found == ("argparse.Namespace, posix.system" if zipped else "at least argparse.Namespace")


def test_a_list_that_torch_cannot_make_is_not_said_to_be_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": TENSORS}, tmp_path / "other.pth")
    with zipfile.ZipFile(tmp_path / "other.pth") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):  # a name, popped again, and then what torch cannot read
                content = b"\x80\x02cargparse\nNamespace\n0\x8c\x05posix\x8c\x06system\x93."
            target.writestr(name, content)
    with pytest.raises(NeedsCodeError) as caught:
        read_checkpoint(path)
    assert caught.value.found == "at least argparse.Namespace"


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_called_one(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "module.pt")
    with pytest.raises(UserError, match="TorchScript archive"):
        read_checkpoint(tmp_path / "module.pt")


def test_a_disk_that_fails_is_not_called_a_damaged_file(tmp_path: Path) -> None:
    memory = Path("/proc/self/mem")  # its first page cannot be read, whoever asks
    if not memory.exists():
        pytest.skip("needs Linux's /proc")
    (tmp_path / "weights.pth").symlink_to(memory)
    with pytest.raises(UserError, match=r"cannot be read .*Input/output error"):
        read_checkpoint(tmp_path / "weights.pth")
