"""dvc.yaml against the code: a stage depends on every module that it runs, and on nothing else."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest
import yaml

from tests.conftest import ROOT

STAGES = ["ingest", "validate", "search", "train", "evaluate", "promote"]
PREFIX = "${code}/"
BY_PATH = {"promote": ["masm.serving.model"]}
"""Modules that a stage hands on by their files instead of importing them."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("masm", "pipelines")


def module_file(module: str) -> str:
    path = Path(*module.split("."))
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def imported_files(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """The files of all modules that a stage imports, and of the packages that they lie in."""
    modules = {"pipelines"}
    for start in (f"pipelines.{stage}", *BY_PATH.get(stage, [])):
        modules |= {start, *graph.find_upstream_modules(start)}
    parents = {module.rsplit(".", depth)[0] for module in modules for depth in range(1, module.count(".") + 1)}
    pending = [parent for parent in parents if parent not in modules]
    for parent in pending:  # a package's own file runs, too, with what it imports
        modules |= {parent, *graph.find_upstream_modules(parent)}
    return {module_file(module) for module in modules}


@pytest.mark.parametrize("stage", ["search", "train"])
def test_what_chooses_a_model_sees_no_test_set(stage: str) -> None:
    """Defect 3 of the reference benchmark: the checkpoint is chosen on the test set."""
    data = {
        dep
        for dep in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
        if dep.startswith("data/")
    }
    assert "data/train" in data
    assert "data/test" not in data


@pytest.mark.parametrize("stage", STAGES)
def test_dependencies_are_the_imports(graph: grimp.ImportGraph, stage: str) -> None:
    definition = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    listed = {dep.removeprefix(PREFIX) for dep in definition.get("do", definition)["deps"] if dep.endswith(".py")}
    expected = imported_files(graph, stage)
    assert sorted(expected) == sorted(listed), "\n".join(f'- "{PREFIX}{file}"' for file in sorted(expected))
