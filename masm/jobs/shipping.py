"""What a job takes along to a cluster: code, params.yaml, dvc.lock and what lies beside them, and no data."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from masm.data.remote import dvc_root, shared_remote
from masm.environment import LOCK, PROJECT
from masm.errors import UserError
from masm.settings import Settings, study_url

UPLOAD_BYTES = 512 * 2**20
"""Of a package that Ray takes (its max_grpc_message_size)."""
LEFT_OUT = (".ci", "docs", "infra", "reports", "runs", "tests")
"""Folders of a repository that no stage reads: a change in them must not make every node fetch its data anew."""
CODE = ("masm", "pipelines", PROJECT, LOCK)


@dataclass(frozen=True)
class Shipment:
    """The files of a job.

    Attributes:
        files: where each lies here, by its path in the job's folder.
        workspace: the path of the workspace in the job's folder.
    """

    files: dict[str, Path]
    workspace: str

    def write(self, folder: Path) -> None:
        """Copy the files."""
        for name, source in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def collect(settings: Settings) -> Shipment:
    """The files of a workspace's repository that git does not ignore, and the code, where it lies elsewhere.

    Other workspaces, and what no stage reads, stay here.

    Raises:
        UserError: git does not know the folder, a file's name is not UTF-8, or the files are more than Ray takes.
    """
    base = dvc_root(settings.root)
    workspace = settings.root.relative_to(base)
    files = {name: base / name for name in _unignored(base) if _goes(Path(name), workspace)}
    code = settings.path(settings.code)
    if code != base:
        files |= {name: code / name for name in _unignored(code) if Path(name).parts[0] in CODE}
    _check_names(files)
    _check_size(files)
    return Shipment(files, workspace.as_posix())


def _goes(path: Path, workspace: Path) -> bool:
    inner = path.relative_to(workspace) if path.is_relative_to(workspace) else path
    return inner.parts[0] not in LEFT_OUT


def _unignored(folder: Path) -> list[str]:
    """The files below a folder that git has, or would add."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)
    if listed.returncode:
        raise UserError(
            f"git does not say which files of {folder} a job takes along ({listed.stderr.strip()}): run `git init` "
            "there."
        )
    return [name for name in sorted(listed.stdout.split("\0")) if name and (folder / name).is_file()]


def _check_names(files: Iterable[str]) -> None:
    """Raise UserError where a name holds other bytes than UTF-8, of which Ray makes no package."""
    for name in files:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        if shown != name:
            raise UserError(
                f"Ray takes no file along whose name is not UTF-8: rename {shown}, or take it out of "
                "git (git rm --cached) and put it into .gitignore."
            )


def _check_size(files: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if (total := sum(sizes.values())) > UPLOAD_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        listed = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
        raise UserError(
            f"a job would take {total / 2**20:.0f} MiB along, Ray takes {UPLOAD_BYTES / 2**20:.0f}; the largest are "
            f"{listed}: put them where every node reaches them, or take them out of git (git rm --cached) and "
            "put them into .gitignore."
        )


def check_reach(settings: Settings, shipment: Shipment, elsewhere: bool) -> None:
    """Check that a job can read and write what its settings name.

    Args:
        settings: the job's.
        shipment: what it takes along.
        elsewhere: whether the cluster has other machines than this one.

    Raises:
        UserError: the DVC remote, the storage path or the backbone's weights are out of its reach.
    """
    base, storage = dvc_root(settings.root), settings.ray.storage
    remote = shared_remote(base)
    if _relative(remote) or (elsewhere and _at_home(remote)):
        raise UserError(
            f"the DVC remote {remote} cannot be reached by the cluster's nodes: `dvc remote modify` it to a URL or an "
            "absolute path that every node reaches, then `dvc push`."
        )
    inside = Path(storage).is_relative_to(base)
    if inside or (elsewhere and _at_home(storage)):
        place = "the folder that the job takes along" if inside else "this machine's home folder"
        raise UserError(
            f"ray.storage is {storage}, in {place}, where no result is found again: set it to a URL or an absolute "
            "path that every node reaches."
        )
    weights = str(settings.backbone.weights)
    if weights in ("starter", "hub"):
        return
    if _relative(weights) and settings.path(weights) not in {path.resolve() for path in shipment.files.values()}:
        raise UserError(
            f"backbone.weights {weights} is no file that the job takes along: put it into {base}, "
            "outside of what git ignores, or give an absolute path that every node reaches."
        )
    if elsewhere and _at_home(weights):
        raise UserError(
            f"backbone.weights {weights} lies in this machine's home folder: put it where every node reaches it."
        )


def check_study(settings: Settings, elsewhere: bool) -> None:
    """Check that a search's study outlives its job, where it is a file.

    Args:
        settings: the job's.
        elsewhere: whether the cluster has other machines than this one.

    Raises:
        UserError: it would lie in the job's folder, or in this machine's home folder.
    """
    url = study_url() or settings.search.study.storage or ""
    if not url.startswith("sqlite"):
        return
    file = settings.path(urlsplit(url).path[1:])
    inside = file.is_relative_to(dvc_root(settings.root))
    if inside or (elsewhere and _at_home(str(file))):
        place = "the folder that the job takes along" if inside else "this machine's home folder"
        raise UserError(
            f"the study storage is {file}, in {place}, where no trial is found again: set MASM_STUDY_STORAGE or "
            "search.study.storage to a database that every node reaches."
        )


def _relative(place: str) -> bool:
    return "://" not in place and not place.startswith(("/", "~"))


def _at_home(place: str) -> bool:
    return "://" not in place and Path(place).expanduser().is_relative_to(Path.home())
