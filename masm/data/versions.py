"""DVC, in one place: which version of the data this is, and bringing data here by its hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from masm.errors import UserError
from masm.settings import Settings, fingerprint

PACKAGE = Path(__file__).parents[1]


def digests(settings: Settings) -> dict[str, str]:
    """The MD5 of each dataset's face table, as dvc.lock holds it.

    Raises:
        UserError: a dataset has not been ingested by DVC, or dvc.lock is damaged.
    """
    stages = _locked_stages(settings.root)
    found = {}
    for name in settings.datasets:
        stage = stages.get(f"ingest@{name}")
        if stage is None:
            raise UserError(f"dvc.lock does not know datasets.{name}: run `dvc repro ingest@{name}` first.")
        found[name] = stage["outs"][0]["md5"]
    return found


def work_name(stage: str, settings: Settings, *parts: object) -> str:
    """The name of a stage's work in progress: another one whenever settings, data or code differ, or any of `parts`.

    A stage resumes whatever it finds under a name, so that a name must never be used for other work: what it reads
    beside the face tables, the backbone's weights above all, goes into `parts`.
    """
    data = list(digests(settings).values())
    return (
        f"{stage}-{fingerprint(settings.seed, settings.crop, settings.backbone, data, code_digest(PACKAGE), *parts)}"
    )


def code_digest(package: Path) -> str:
    """Of the Python files of a package, for names of work in progress."""
    return fingerprint([file.read_text() for file in sorted(package.rglob("*.py"))])


def fetch_missing(root: Path, stages: list[str]) -> None:
    """Bring outputs that are not on this disk here from the DVC remote, by the hashes in dvc.lock.

    A job on a cluster gets the code, params.yaml and dvc.lock, but no data: this is where its data come from, on each
    node for itself. Of the workers of a node one fetches while the others wait; what a killed one left half fetched
    is fetched again.

    Args:
        root: the workspace, where dvc.lock is.
        stages: names of the stages whose outputs are needed.

    Raises:
        UserError: an output is neither here nor in the remote, or dvc.lock is damaged.
    """
    locked = _locked_stages(root)
    needed = {stage: locked[stage]["outs"] for stage in stages if stage in locked}
    if not needed:
        return
    work = root / "data" / "work"
    work.mkdir(parents=True, exist_ok=True)
    begun = work / "fetching"
    with FileLock(work / "fetch.lock"):
        unfinished = begun.read_text().split() if begun.exists() else []
        missing = [
            stage
            for stage, outs in needed.items()
            if stage in unfinished or any(not (root / out["path"]).exists() for out in outs)
        ]
        if missing:
            begun.write_text(" ".join(sorted({*unfinished, *missing})))
            _pull(root, missing, force=bool(unfinished))
            begun.write_text(" ".join(stage for stage in unfinished if stage not in missing))


def _pull(root: Path, stages: list[str], force: bool) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root), config={"core": {"no_scm": not in_checkout(root)}}) as repo:
            repo.pull(targets=[f"{root / 'dvc.yaml'}:{stage}" for stage in stages], force=force)
    except DvcException as error:
        raise UserError(
            f"the outputs of {', '.join(stages)} are not in {root} and the DVC remote does not give them ({error}): "
            "run `dvc push` where the data was made."
        ) from None


def fetch_table(root: Path, dataset: str, revision: str, out: Path) -> str:
    """Bring the face table that a dataset had at a revision here, from DVC's cache or remote.

    Args:
        root: the workspace.
        dataset: its name at that revision.
        revision: anything that git takes for a commit.
        out: the folder that the table becomes; it appears when it is whole.

    Returns:
        The table's MD5, as dvc.lock holds it at that revision.

    Raises:
        UserError: `out` is there already, `root` is in no git repository, the revision is unknown, it has no such
            dataset, neither cache nor remote gives it, or what they give has another MD5.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError

    if out.exists():
        raise UserError(f"{out} is there already: move it away, or give another --out.")
    if not in_checkout(root):  # DVC would give what is here, whatever the revision
        raise UserError(f"{root} lies in no git repository, so that it has no revisions.")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        files = DVCFileSystem(str(root), rev=revision)
        workspace = root.resolve().relative_to(Path(files.repo.scm.root_dir).resolve())
        stages = _stages(files.read_text(str(workspace / "dvc.lock")), f"of revision {revision}")
        if f"ingest@{dataset}" not in stages:
            names = ", ".join(sorted(stage.removeprefix("ingest@") for stage in stages if "@" in stage))
            raise UserError(f"there is no dataset {dataset!r} in dvc.lock at revision {revision}: it has {names}.")
        table = stages[f"ingest@{dataset}"]["outs"][0]
        partial.parent.mkdir(parents=True, exist_ok=True)
        files.get(str(workspace / table["path"]), str(partial), recursive=True)
        if (found := folder_md5(partial)) != table["md5"]:
            raise UserError(
                f"the face table of {dataset} at revision {revision} came with MD5 {found}, not {table['md5']}: it is "
                "damaged in DVC's cache or remote, remove it there and run `dvc push` where the data was made."
            )
        partial.rename(out)
    except (DvcException, DataIndexError, OSError) as error:
        raise UserError(
            f"the face table of {dataset} at revision {revision} cannot be fetched ({error}): name a commit of this "
            "repository that has a dvc.lock, and run `dvc push` where the data was made."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return table["md5"]


def _locked_stages(root: Path) -> dict[str, Any]:
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    return _stages(lock.read_text(), f"in {root}")


def _stages(lock: str, where: str) -> dict[str, Any]:
    """The stages of a dvc.lock, by name."""
    try:
        return dict(yaml.safe_load(lock)["stages"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError(
            f"the dvc.lock {where} is damaged: it holds no stages, or is no YAML, as with marks of a conflict in it; "
            "take one that git has (`git checkout REVISION -- dvc.lock`), or remove it and run `dvc repro`."
        ) from None


def folder_md5(folder: Path) -> str:
    """What DVC calls the MD5 of a folder: that of the JSON listing of its files, sorted by path."""
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listing = [{"md5": _file_md5(folder / path), "relpath": path} for path in paths]
    return f"{hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest()}.dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


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
