"""A repository whose stages are a line each: what a job does around its stage, without the stage's work."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from masm.data.versions import push
from masm.lineage import environment
from tests.conftest import ROOT
from tests.pipeline.workspace import edit, run

DVC_YAML = """\
stages:
  ingest:
    foreach: [swap]
    do:
      cmd: mkdir -p data/train/${item} && echo face > data/train/${item}/faces
      outs: ["data/train/${item}"]
  search:
    cmd: mkdir -p search && echo best > search/best.json
    deps: [data/train]
    outs: [search]
  train:
    cmd: python -m pipelines.train
    deps: [data/train, search]
    outs: [models]
"""
STAGE = """\
import os, sys, time
from pathlib import Path

from masm.settings import load_settings

print("works in", "/".join(Path.cwd().parts[-2:]), "for", load_settings().mlflow.experiment)
print("secret of", len(os.environ.get("MLFLOW_TRACKING_PASSWORD", "")), "letters")
print("run at http://tracking:5000/#/experiments/7/runs/0a1b2c")
if wait := Path("wait").read_text():
    while not Path(wait).exists():
        time.sleep(0.2)
sys.exit(int(Path("code").read_text()))
"""


def make_repository(folder: Path) -> Path:
    """A git and DVC repository with masm and a stage `train` that only speaks; its workspace runs/own is returned.

    The stage ends with the number in the file `code`, once the file exists that `wait` names.
    """
    workspace = folder / "runs" / "own"
    workspace.mkdir(parents=True)
    shutil.copytree(ROOT / "masm", folder / "masm", ignore=shutil.ignore_patterns("__pycache__", "starter"))
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "__init__.py").write_text("")
    (folder / "pipelines" / "train.py").write_text(STAGE)
    # Its lock is this environment, whatever has been installed here since the project's was made.
    (folder / "requirements.lock").write_text("\n".join(environment()) + "\n")
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copyfile(ROOT / "params.yaml", workspace / "params.yaml")
    edit(workspace / "params.yaml", {"code": "../..", "mlflow.experiment": "masm-own", "train.workers": 2})
    (workspace / "dvc.yaml").write_text(DVC_YAML)
    (workspace / "code").write_text("0")
    (workspace / "wait").write_text("")
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        [sys.executable, "-m", "dvc", "repro", "-q", "runs/own/dvc.yaml:search"],
    ):
        done = run(*command, folder=folder)
        assert done.returncode == 0, done.stderr
    set_remote(folder, str(folder.parent / "remote"))
    push(workspace)
    return workspace


def set_remote(folder: Path, url: str) -> None:
    """The only remote of a DVC repository."""
    (folder / ".dvc" / "config").write_text(f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {url}\n")


def copy_repository(workspace: Path, folder: Path) -> Path:
    """A copy of a repository and of its remote, to be changed; its workspace is returned."""
    repository = workspace.parents[1]
    shutil.copytree(repository.parent, folder)
    set_remote(folder / repository.name, str(folder / "remote"))
    return folder / workspace.relative_to(repository.parent)
