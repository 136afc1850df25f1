"""Reading weight files, of which no code is ever run."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models import clean_state_dict
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from masm.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
CONTAINER = "masm.container"  # in the metadata of converted files: what `Checkpoint.container` says
_CONTAINERS = ("model", "state_dict")
_DAMAGED = (
    OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error,
    UnpicklingError,
)  # fmt: skip


class NeedsCodeError(UserError):
    """A checkpoint that holds more than tensors: `found` is what only running code could read."""

    def __init__(self, path: Path, found: str) -> None:
        self.found = found
        super().__init__(
            f"{path} holds more than tensors ({found}), and reading it could run code that it brings: if you trust "
            f"it, `masm backbone convert {path} {path.stem}.safetensors` writes its tensors alone."
        )


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weight file by name.

    `container` is the key under which its outer dict held them, as in {"model": ..., "epoch": ...}; "" where
    they were the whole of it. Authors are told apart by it.
    """

    path: Path
    tensors: dict[str, Tensor]
    container: str


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a .safetensors, .pth, .pt or .bin file; prefixes of torch's wrappers are taken off.

    Raises:
        NeedsCodeError: reading it would run code.
        UserError: the file is missing, damaged, or holds no weights.
    """
    if not path.is_file():
        raise UserError(
            f"backbone weights {path} are missing: give a {' or '.join(SUFFIXES)} file, 'starter' or 'hub'."
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no weight file by its name: give one that ends with {', '.join(SUFFIXES)}.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def find_weights(loaded: Any, path: Path) -> Checkpoint:
    """The tensors in what torch.load gave: a dict of them, or one in a dict under `model` or `state_dict`.

    Raises:
        UserError: there are none.
    """
    if isinstance(loaded, Mapping):
        for container in ("", *_CONTAINERS):
            found = loaded.get(container) if container else loaded
            if isinstance(found, Mapping) and found and all(map(_is_weight, found.items())):
                return Checkpoint(path, clean_state_dict(dict(found)), container)
    raise UserError(
        f"{path} holds no weights, which are a dict of tensors or one under {' or '.join(_CONTAINERS)}: give "
        "another file."
    )


def _is_weight(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}): convert or fetch it anew.") from error
    return Checkpoint(path, clean_state_dict(tensors), metadata.get(CONTAINER, ""))


def _read_torch(path: Path) -> Checkpoint:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:  # torch has OSErrors of its own for what is damaged
        raise UserError(f"{path} cannot be read ({error}): see to the disk and to its permissions.") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        if isinstance(error, UnpicklingError) and (first := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise NeedsCodeError(path, _code_in(path) or f"at least {first[1]}") from None
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript archive, which is a program: give the weights of its model alone, as "
                "torch.save(model.state_dict(), ...) writes them."
            ) from error
        raise UserError(
            f"{path} is no checkpoint of torch.save, or is damaged ({type(error).__name__}): fetch it anew."
        ) from error
    return find_weights(loaded, path)


def _code_in(path: Path) -> str:
    """All that only running code could read; empty where torch cannot list it, as in its older format."""
    try:
        return ", ".join(sorted(get_unsafe_globals_in_checkpoint(path)))
    except _DAMAGED:
        return ""
