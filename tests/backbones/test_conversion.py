"""Conversion runs code in a process of its own, and only when told to."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from typer.testing import CliRunner

from masm.backbones import load_backbone
from masm.backbones.checkpoint import NeedsCodeError, read_checkpoint
from masm.backbones.conversion import convert
from masm.cli import app
from masm.errors import UserError
from tests.backbones import fsfm


class Telling:
    """Writes the environment into a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, (f"env > {self.path}; pwd >> {self.path}",)


def test_tensors_alone_need_no_question(tmp_path: Path) -> None:
    checkpoint = fsfm.fine_tuned(fsfm.encoder())
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    result = CliRunner().invoke(
        app, ["backbone", "convert", str(tmp_path / "checkpoint.pth"), str(tmp_path / "model.safetensors")]
    )
    assert result.exit_code == 0, result.output
    found = read_checkpoint(tmp_path / "model.safetensors")
    assert all(torch.equal(found.tensors[name], value) for name, value in checkpoint["model"].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "model.safetensors"]


def test_a_converted_file_is_read_as_the_checkpoint_was(tmp_path: Path) -> None:
    torch.save(fsfm.fine_tuned(fsfm.encoder()), tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "model.safetensors", run_code=False)
    first = load_backbone(fsfm.NAME, tmp_path / "checkpoint.pth", 64)
    second = load_backbone(fsfm.NAME, tmp_path / "model.safetensors", 64)
    assert (first.mean, first.std, first.arguments) == (second.mean, second.std, second.arguments)
    assert first.head is not None
    assert second.head is not None
    assert torch.equal(first.head[0], second.head[0])
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["masm.source"] == "checkpoint.pth"
    assert metadata["masm.source_sha256"] == hashlib.sha256((tmp_path / "checkpoint.pth").read_bytes()).hexdigest()


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_no_code_runs(tmp_path: Path, answer: str) -> None:
    source, target = tmp_path / "checkpoint.pth", tmp_path / "model.safetensors"
    args = [argparse.Namespace(lr=1e-3), Telling(tmp_path / "marker")]
    torch.save({"model": fsfm.encoder(), "args": args}, source)
    with pytest.raises(NeedsCodeError):
        convert(source, target, run_code=False)
    result = CliRunner().invoke(app, ["backbone", "convert", str(source), str(target)], input=answer)
    assert isinstance(result.exception, UserError)
    assert "was not converted" in str(result.exception)
    assert "runs code" in result.output
    assert "argparse.Namespace, posix.system" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


@pytest.mark.slow
def test_code_runs_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did run, or the test would show nothing; in another folder, and without the environment's secrets."""
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "7")
    source, target = tmp_path / "checkpoint.pth", tmp_path / "model.safetensors"
    weights = fsfm.encoder()
    shared = weights | {"cls_token": weights["pos_embed"][:, :1]}  # two tensors over the same memory
    content = {"model": shared, "args": argparse.Namespace(lr=1e-3), "extra": Telling(tmp_path / "marker")}
    torch.save(content, source)
    result = CliRunner().invoke(app, ["backbone", "convert", str(source), str(target)], input="y\n")
    assert result.exit_code == 0, result.output
    found = read_checkpoint(target)
    assert found.container == "model"
    assert all(torch.equal(found.tensors[name], value) for name, value in shared.items())
    told = (tmp_path / "marker").read_text()
    assert "PYTHONPATH" in told
    assert "SECRET_OF_THE_SHELL" not in told
    assert told.splitlines()[-1] != os.getcwd()


@pytest.mark.slow
def test_a_whole_module_gives_its_tensors(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(module, tmp_path / "module.pt")
    convert(tmp_path / "module.pt", tmp_path / "model.safetensors", run_code=True)
    found = read_checkpoint(tmp_path / "model.safetensors").tensors
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


@pytest.mark.slow
def test_a_module_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_another.py").write_text("class Arguments:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from models_of_another import Arguments

    torch.save({"model": fsfm.encoder(), "args": Arguments()}, tmp_path / "checkpoint.pth")
    (tmp_path / "models_of_another.py").unlink()
    with pytest.raises(UserError, match="No module named 'models_of_another'"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "model.safetensors", run_code=True)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("model.pth", "must end with"), ("there.safetensors", "not be there"), ("no/model.safetensors", "no folder")],
)
def test_the_target_is_checked_first(tmp_path: Path, name: str, said: str) -> None:
    torch.save(fsfm.encoder(), tmp_path / "checkpoint.pth")
    (tmp_path / "there.safetensors").write_bytes(b"kept")
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "checkpoint.pth", tmp_path / name, run_code=False)
    assert (tmp_path / "there.safetensors").read_bytes() == b"kept"


@pytest.mark.parametrize("kind", ["sparse", "quantised"])
def test_what_safetensors_cannot_hold_is_said(tmp_path: Path, kind: str) -> None:
    plain = torch.eye(4)
    odd = plain.to_sparse() if kind == "sparse" else torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)
    torch.save({"a": odd}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="neither sparse nor quantised"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "model.safetensors", run_code=False)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs Linux's /proc, where nobody makes files")
    torch.save(fsfm.encoder(), tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match="a folder that can be written"):
        convert(tmp_path / "checkpoint.pth", Path("/proc/self/model.safetensors"), run_code=False)


def test_others_may_read_the_converted_file(tmp_path: Path) -> None:
    torch.save(fsfm.encoder(), tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "model.safetensors", run_code=False)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644
