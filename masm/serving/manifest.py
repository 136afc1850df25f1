"""The list of a model's files with their SHA-256, by which a copy shows that it is what was registered."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from masm.errors import UserError

MANIFEST = "manifest.json"
OF_A_DOWNLOAD = "registered_model_meta"
"""The file that MLflow adds to the copy of a registered version."""


class DamagedModel(UserError):
    """A model's files are not those that were registered; it must not serve."""


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> str:
    """Write the SHA-256 of each file in `folder` to its manifest.json, and return the manifest's own."""
    _drop_compiled(folder)
    listed = {name: digest(folder / name) for name in sorted(_files(folder))}
    path = folder / MANIFEST
    path.write_text(json.dumps(listed, indent=1) + "\n")
    return digest(path)


def check_manifest(folder: Path, expected: str, model: str) -> None:
    """Compare a model's folder with its manifest, and the manifest with its SHA-256.

    A file that the manifest does not list is a fault, too: Python would import it from the model's code. What Python
    compiled there, when MLflow loaded the model where it lies, is removed instead.

    Args:
        folder: the model's files, manifest.json among them.
        expected: SHA-256 of manifest.json, as it was when the model was registered.
        model: what to call the model in the message.

    Raises:
        DamagedModel: a file is missing, changed, or one too many; the message names the first of them.
    """
    _drop_compiled(folder)
    _check(folder, MANIFEST, expected, model)
    listed: dict[str, str] = json.loads((folder / MANIFEST).read_text())
    for name, value in sorted(listed.items()):
        _check(folder, name, value, model)
    if added := sorted(_files(folder) - listed.keys()):
        raise DamagedModel(f"{model}: {added[0]} was added to its files after it was registered: {_ADVICE}")


_ADVICE = "restore the model's files from a backup, or register the model anew."


def _check(folder: Path, name: str, expected: str, model: str) -> None:
    path = folder / name
    if not path.is_file():
        raise DamagedModel(f"{model}: its file {name} is missing from the artifact store: {_ADVICE}")
    if digest(path) != expected:
        raise DamagedModel(f"{model}: its file {name} is not what was registered (SHA-256 differs): {_ADVICE}")


def _drop_compiled(folder: Path) -> None:
    for compiled in list(folder.rglob("__pycache__")):
        shutil.rmtree(compiled)


def _files(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {MANIFEST, OF_A_DOWNLOAD}
