"""A workspace of its own, small enough to run every stage in a minute or two."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

SMALL: dict[str, Any] = {
    "code": str(ROOT),
    "adapter.cache": "../cache",
    "faces.people": 24,
    "faces.photographs": 1,
    "crop.working_size": 64,
    "crop.frames": 2,
    "checks.min_videos": 2,
    "search.trials": 2,
    "search.frames": 1,
    "search.optimisation.epochs": 1,
    "search.optimisation.batch_size": 8,
    "search.space.rank.values": [2],
    "train.epochs": 2,
    "train.batch_size": 8,
    "evaluate.draws": 200,
    "gate.floors.default": None,  # so little training may end below chance
    "gate.max_calibration_error": None,
    "gate.max_robustness_drop": None,
    "evaluate.robustness.frames": 4,
}


def edit(params: Path, changes: dict[str, Any]) -> None:
    """Set dotted keys of a params.yaml."""
    tree = yaml.safe_load(params.read_text())
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[leaf] = value
    params.write_text(yaml.safe_dump(tree, sort_keys=False))


def make_workspace(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A git and DVC repository with the shipped dvc.yaml, and small settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copyfile(ROOT / name, folder / name)
    edit(folder / "params.yaml", {**SMALL, "ray.storage": str(folder.parent / "ray"), **(changes or {})})
    run("git", "init", "-q", folder=folder)
    run(sys.executable, "-m", "dvc", "init", "-q", folder=folder)
    run(
        sys.executable,
        "-m",
        "dvc",
        "remote",
        "add",
        "-q",
        "-d",
        "storage",
        str(folder.parent / "remote"),
        folder=folder,
    )
    return folder


def run(*command: str, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output comes back, whatever its exit code."""
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
