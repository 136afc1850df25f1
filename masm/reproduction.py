"""A registered model made again from what its run recorded, in a clone of its own, and its metrics compared.

Nothing of it touches the registry: the stages run up to `evaluate`, and their MLflow store lies in the clone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from masm.data.versions import folder_md5, locked_tables, restore
from masm.errors import CheckFailed, UserError
from masm.provenance import run_of
from masm.settings import Settings

STAGES = ("validate", "search", "train", "evaluate")
READ_FROM_FILES = (("faces", "folder"), ("crop", "detector_weights"), ("backbone", "weights"), ("adapter", "cache"))
"""Settings that may be relative paths outside of the repository."""
SHIPPED = ("starter", "hub")
"""Values of backbone.weights that are no paths."""


@dataclass(frozen=True)
class Recorded:
    """What the run of a version kept.

    Attributes:
        commit: of the code.
        changes: uncommitted ones to it, as a diff; none where it is empty.
        settings: params.yaml.
        lock: dvc.lock.
        metrics: reports/metrics.json.
        environment: the installed packages, as `name==version`.
    """

    commit: str
    changes: str
    settings: dict[str, Any]
    lock: str
    metrics: dict[str, float]
    environment: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A metric that does not agree; None where one side does not have it."""

    name: str
    recorded: float | None
    reproduced: float | None


def read_record(version: ModelVersion) -> Recorded:
    """Read what a version's run kept.

    Raises:
        UserError: the run was recorded without its settings or with uncommitted changes that were not kept.
    """
    client = mlflow.MlflowClient()
    run = run_of(client, version)
    commit, dirty = run.data.tags.get("git.commit", "none"), run.data.tags.get("git.dirty") == "true"
    named = f"{version.name} version {version.version}"
    if commit == "none":
        raise UserError(f"{named} was made outside of a git repository: its code is not known.")
    kept = {item.path for item in client.list_artifacts(run.info.run_id)}
    if missing := {"params.yaml", "dvc.lock", "metrics.json"} - kept:
        raise UserError(f"the run of {named} did not keep {min(missing)}: it was registered before runs kept it.")
    if dirty and "uncommitted.diff" not in kept:
        raise UserError(f"{named} was made from uncommitted changes to {commit[:12]}, which its run did not keep.")
    text = {
        name: _artifact(version, name) if name in kept else ""
        for name in ("params.yaml", "dvc.lock", "metrics.json", "environment.txt", "uncommitted.diff")
    }
    return Recorded(
        commit=commit,
        changes=text["uncommitted.diff"] if dirty else "",
        settings=yaml.safe_load(text["params.yaml"]),
        lock=text["dvc.lock"],
        metrics=json.loads(text["metrics.json"]),
        environment=tuple(text["environment.txt"].split()),
    )


def _artifact(version: ModelVersion, name: str) -> str:
    try:
        return mlflow.artifacts.load_text(f"runs:/{version.run_id}/{name}")
    except (MlflowException, OSError) as error:
        raise UserError(f"{name} of {version.name} version {version.version} cannot be read ({error}).") from None


def reproduce(settings: Settings, recorded: Recorded, folder: Path, keep_search: bool = False) -> dict[str, float]:
    """Make a version again in `folder`.

    Args:
        settings: of a workspace of the repository whose code it is, and whose DVC cache and remotes hold its data.
        recorded: of `read_record`.
        folder: the clone that is made; the workspace in it lies where `settings.root` lies in the repository.
        keep_search: take the search's outcome from DVC instead of searching again.

    Returns:
        The metrics that came out.

    Raises:
        UserError: the folder is there already, the commit is not in the repository, the changes do not apply, or the
            search's outcome is not in DVC's cache or remote.
        CheckFailed: a stage failed, or a face table that was made again is another than the recorded one.
    """
    code = settings.path(settings.code)
    clone(code, recorded, folder)
    workspace = prepare(settings, recorded, folder)
    tables = locked_tables(workspace)
    wanted = [*tables, "search"] if keep_search else [*tables]
    absent = restore(workspace, settings.root, wanted)
    if "search" in absent:
        raise UserError("the search's outcome is neither in DVC's cache nor in its remote: search again.")
    stages = [stage for stage in STAGES if not (keep_search and stage == "search")]
    if absent:
        run_stages(workspace, folder, absent)
    for stage, (path, md5) in tables.items():
        if (found := folder_md5(workspace / path)) != md5:
            raise CheckFailed(f"{stage} was made again with MD5 {found}, recorded is {md5}: the data differ.")
    run_stages(workspace, folder, stages)
    return dict(json.loads((workspace / "reports" / "metrics.json").read_text()))


@contextmanager
def in_folder(named: Path | None) -> Iterator[Path]:
    """The folder that is named, which must be new and stays; or a temporary one."""
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="masm-reproduce-") as folder:
        yield Path(folder, "code")


def clone(code: Path, recorded: Recorded, folder: Path) -> None:
    """A clone of the repository around `code` at the recorded revision, with the changes that were not committed.

    It reads the repository's objects where they are; the repository stays as it is.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is there already: move it away, or name another.")
    top = _git(code, f"{code} lies in no git repository", "rev-parse", "--show-toplevel").strip()
    _git(code, f"{top} cannot be cloned", "clone", "-q", "--shared", "--no-checkout", top, str(folder.resolve()))
    missing = f"commit {recorded.commit} is not in {top}: `git fetch` it from where the model was made"
    _git(folder, missing, "checkout", "-q", "--detach", recorded.commit)
    if recorded.changes:
        refused = f"the changes that the run kept do not apply to commit {recorded.commit}"
        _git(folder, refused, "apply", "--whitespace=nowarn", "-", text=recorded.changes)


def _git(folder: Path, otherwise: str, *arguments: str, text: str | None = None) -> str:
    """What git prints; UserError, saying `otherwise`, where it fails."""
    ended = subprocess.run(["git", "-C", str(folder), *arguments], input=text, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"{otherwise} ({' '.join(ended.stderr.split())}).")
    return ended.stdout


def prepare(settings: Settings, recorded: Recorded, folder: Path) -> Path:
    """The workspace in a clone: recorded settings and dvc.lock, with MLflow's store in the clone.

    Relative paths of other files are seen from the workspace that there is; the storage of work in progress is fresh,
    so that nothing is resumed.
    """
    code = settings.path(settings.code)
    inside = settings.root.is_relative_to(code)
    workspace = folder.resolve() / (settings.root.relative_to(code) if inside else Path("runs", settings.root.name))
    workspace.mkdir(parents=True, exist_ok=True)
    tree = {section: dict(value) if isinstance(value, dict) else value for section, value in recorded.settings.items()}
    for section, key in READ_FROM_FILES:
        value = tree.get(section, {}).get(key)
        if value is not None and value not in SHIPPED:
            tree[section][key] = str(settings.path(value))
    tree["code"] = os.path.relpath(folder.resolve(), workspace)
    own = folder.resolve()
    tree["mlflow"] |= {"tracking_uri": f"sqlite:///{own / 'mlflow.db'}", "artifacts": str(own / "mlartifacts")}
    shared = settings.ray.address is not None  # every node of a cluster must reach it
    tree["ray"]["storage"] = f"{settings.ray.storage}/{own.name}-{uuid4().hex[:8]}" if shared else str(own / "ray")
    search = tree.get("search", {})
    if "study" in search:  # one of that name has ended; what a warm start learns from is where it was
        search["study"] = {"storage": settings.study_storage if search["warm_start"] else None, "name": None}
    (workspace / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    (workspace / "dvc.lock").write_text(recorded.lock)
    if not (workspace / "dvc.yaml").exists():  # that of runs/NAME is a copy
        (workspace / "dvc.yaml").write_text((folder / "dvc.yaml").read_text())
    return workspace


def run_stages(workspace: Path, code: Path, stages: Sequence[str]) -> None:
    """Run stages in a workspace in this order, each even if nothing changed, with the code of the clone.

    Raises:
        CheckFailed: one failed.
    """
    # The address that MLflow itself leaves in the environment goes before params.yaml.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(code.resolve())
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", "--no-commit", *stages]
    if subprocess.run(command, cwd=workspace, env=environment, stdout=sys.stderr).returncode:
        raise CheckFailed(f"one of the stages {', '.join(stages)} failed in {workspace}: what it said stands above.")


def differences(recorded: Mapping[str, float], found: Mapping[str, float], tolerance: float) -> list[Difference]:
    """The metrics that differ by more than `tolerance`, that one side alone has, or that one alone has as NaN."""
    names = sorted({*recorded, *found})
    pairs = [Difference(name, recorded.get(name), found.get(name)) for name in names]
    return [pair for pair in pairs if not _agree(pair.recorded, pair.reproduced, tolerance)]


def _agree(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b  # JSON's null on both sides
    return math.isclose(a, b, rel_tol=0, abs_tol=tolerance) or (math.isnan(a) and math.isnan(b))


def changed_packages(recorded: Sequence[str], present: Sequence[str]) -> list[str]:
    """Packages of one environment that the other has not, or in another version: "name 1.0 -> 1.1"."""
    old, new = (dict(line.split("==", 1) for line in lines) for lines in (recorded, present))
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return [f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}" for name in names]
