"""The DVC remote, as far as jobs on a cluster depend on it: where it is, and whether it has what a stage reads."""

from __future__ import annotations

import configparser
from pathlib import Path

from masm.errors import UserError


def dvc_root(folder: Path) -> Path:
    """The DVC repository that a workspace lies in.

    Raises:
        UserError: it lies in none.
    """
    for candidate in (folder, *folder.parents):
        if (candidate / ".dvc").is_dir():
            return candidate
    raise UserError(f"{folder} lies in no DVC repository: run `dvc init` there.")


def shared_remote(root: Path) -> str:
    """The address of the default remote in .dvc/config, as it stands there: all that a job knows of it.

    Args:
        root: the DVC repository.

    Raises:
        UserError: the file names none.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / ".dvc" / "config")
    name = config.get("core", "remote", fallback=None)
    url = config.get(f"'remote \"{name}\"'", "url", fallback=None)
    if url is None:
        raise UserError(
            f"{root / '.dvc' / 'config'} names no default remote, from which a job could read its data: "
            "`dvc remote add -d storage URL`, then `dvc push`."
        )
    return url


def check_pushed(root: Path, stage: str) -> None:
    """Check that the remote has all that a stage reads of other stages, in the versions of dvc.lock.

    Args:
        root: the workspace.
        stage: its name in dvc.yaml.

    Raises:
        UserError: there is no dvc.lock, a stage before this one has not run, the remote lacks something, or does not
            answer.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not (root / "dvc.lock").is_file():
        raise UserError(
            f"there is no dvc.lock in {root}, by which a job finds its data: run `dvc repro {stage}` "
            "as far as the stages before it, then `dvc push`."
        )
    try:
        with Repo(str(root)) as repo:
            reads = list(repo.index.graph.successors(repo.stage.load_one(str(root / "dvc.yaml"), stage)))
            if unmade := sorted(one.name for one in reads if not all(out.hash_info for out in one.outs)):
                raise UserError(
                    f"dvc.lock does not know {', '.join(unmade)}, which {stage} reads: run `dvc repro "
                    f"{' '.join(unmade)}` and `dvc push`."
                )
            lacking = repo.status(targets=[one.addressing for one in reads], cloud=True)
    except (DvcException, OSError) as error:
        raise UserError(
            f"the DVC remote does not say what it has ({error}): `dvc remote list` shows where it is."
        ) from None
    absent = [Path(path) for path, state in lacking.items() if state in ("new", "missing")]
    outputs = [str(out) for one in reads for out in one.outs]
    if unpushed := sorted(out for out in outputs if any(path.is_relative_to(out) for path in absent)):
        raise UserError(f"the DVC remote lacks {', '.join(unpushed)}, which {stage} reads: run `dvc push`.")
