"""DVC, in one place: which version of the data this is, and bringing data here by its hash."""

from __future__ import annotations

import re
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml

from masm.errors import UserError
from masm.settings import Settings, fingerprint


def digests(settings: Settings) -> dict[str, str]:
    """The MD5 of each dataset's face table, as dvc.lock holds it.

    Raises:
        UserError: a dataset has not been ingested by DVC.
    """
    stages = _locked_stages(settings.root)
    found = {}
    for name in settings.datasets:
        stage = stages.get(f"ingest@{name}")
        if stage is None:
            raise UserError(f"dvc.lock does not know datasets.{name}: run `dvc repro ingest@{name}` first.")
        found[name] = stage["outs"][0]["md5"]
    return found


def code_digest(package: Path) -> str:
    """Of the Python files of a package, for names of work in progress."""
    return fingerprint([file.read_text() for file in sorted(package.rglob("*.py"))])


def fetch_missing(root: Path, stages: list[str]) -> None:
    """Bring outputs that are not on this disk here from the DVC remote, by the hashes in dvc.lock.

    A job on a cluster gets the code, params.yaml and dvc.lock, but no data: this is where its data come from.

    Args:
        root: the workspace, where dvc.lock is.
        stages: names of the stages whose outputs are needed.

    Raises:
        UserError: an output is neither here nor in the remote.
    """
    locked = _locked_stages(root)
    missing = [
        stage
        for stage in stages
        if any(not (root / out["path"]).exists() for out in locked.get(stage, {"outs": []})["outs"])
    ]
    if not missing:
        return
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root), config={"core": {"no_scm": not in_checkout(root)}}) as repo:
            repo.pull(targets=[f"{root / 'dvc.yaml'}:{stage}" for stage in missing])
    except DvcException as error:
        raise UserError(
            f"the outputs of {', '.join(missing)} are not in {root} and the DVC remote does not give them ({error}): "
            "run `dvc push` where the data was made."
        ) from None


def _locked_stages(root: Path) -> dict[str, Any]:
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    return yaml.safe_load(lock.read_text()).get("stages", {})


def in_checkout(root: Path) -> bool:
    """Whether this is somebody's checkout; a job on a cluster works in a copy without .git, which is lost."""
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def reproduce(root: Path, stage: str | None = None) -> int:
    """`dvc repro` of a workspace, or of one stage and of what it depends on.

    Returns:
        0, or the exit code of the stage that failed, which has said why.

    Raises:
        UserError: DVC itself could not do it.
    """
    from dvc.exceptions import DvcException, ReproductionError
    from dvc.repo import Repo

    try:
        with chdir(root), Repo() as repo:  # DVC wants to be called from inside
            repo.reproduce(stage or "dvc.yaml")
    except ReproductionError as error:
        exit_code = re.search(r"exited with (\d+)$", str(error.__cause__))
        if exit_code is None:
            raise UserError(f"{error}: {error.__cause__}") from None
        return int(exit_code.group(1))
    except DvcException as error:
        raise UserError(f"DVC cannot run {root / 'dvc.yaml'}: {error}") from None
    return 0


def push(root: Path) -> None:
    """Copy the outputs of a workspace to the DVC remote, where jobs on a cluster find them.

    Raises:
        UserError: the remote cannot be written.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            repo.push(targets=[str(root / "dvc.yaml")])
    except DvcException as error:
        raise UserError(f"the DVC remote cannot be written ({error}): `dvc remote list` shows where it is.") from None
