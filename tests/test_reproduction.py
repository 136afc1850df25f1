"""What a version came from, and making it again: against a real MLflow and git; the whole way is in tests/pipeline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import yaml
from dvc.repo import Repo
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from masm import registry
from masm.cli import app, main
from masm.errors import UserError
from masm.provenance import describe, trace
from masm.reproduction import (
    Difference,
    Recorded,
    changed_packages,
    clone,
    differences,
    prepare,
    read_record,
)
from masm.settings import Settings, load_settings
from pipelines import promote
from tests.conftest import ROOT
from tests.serving.workspace import TESTS, lock_data, make_workspace, own_address

DIGESTS = {"swap": "a" * 32, "selfblend": "b" * 32, "upsample": "c" * 32, "denoise": "d" * 32}


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A workspace with a champion."""
    folder = tmp_path_factory.mktemp("promoted")
    with own_address():
        settings = make_workspace(folder / "workspace", folder / "mlflow.db")
        lock_data(settings.root, DIGESTS)
        promote.main(settings)
        yield settings


@pytest.fixture
def version(promoted: Settings) -> ModelVersion:
    found = registry.champion(registry.connect(promoted.mlflow), promoted.mlflow.model)
    assert found is not None
    return found


def test_the_chain_goes_from_the_data_to_the_model(promoted: Settings, version: ModelVersion) -> None:
    chain = trace(registry.connect(promoted.mlflow), version)
    assert {row["name"]: row["md5"] for row in chain["data"]} == DIGESTS
    assert [(row["name"], row["role"]) for row in chain["data"]][:2] == [("swap", "train"), ("selfblend", "validate")]
    assert {row["role"] for row in chain["data"] if row["name"] in TESTS} == {"test"}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert chain["code"]["commit"] == head.stdout.strip()
    assert chain["backbone"]["sha256"] == "b" * 64
    assert chain["settings"]["hash"] == version.tags["settings.hash"]
    assert chain["stages"] == {"search": None, "train": None}
    assert chain["run"]["id"] == version.run_id
    assert chain["run"]["status"] == "FINISHED"
    assert (chain["model"]["version"], chain["model"]["aliases"]) == (1, ["champion"])
    assert chain["model"]["artifacts_sha256"] == version.tags["artifacts.sha256"]
    assert chain["model"]["created"] >= chain["run"]["started"]
    named = dict(describe(chain))
    assert named["model"] == f"{promoted.mlflow.model} version 1 (champion), promoted"
    assert named["code"].startswith(f"commit {head.stdout.strip()}")


def test_the_command_prints_the_chain(promoted: Settings, version: ModelVersion) -> None:
    uri, params = f"models:/{promoted.mlflow.model}@champion", str(promoted.root / "params.yaml")
    printed = CliRunner().invoke(app, ["lineage", uri, "--params", params])
    assert printed.exit_code == 0, printed.output
    for said in ("champion", "1"):
        assert CliRunner().invoke(app, ["lineage", said, "--params", params]).output == printed.output
    assert f"md5 {'c' * 32}" in printed.output
    as_json = CliRunner().invoke(app, ["lineage", uri, "--params", params, "--json"])
    assert json.loads(as_json.output) == trace(registry.connect(promoted.mlflow), version)


def test_the_record_is_what_the_run_kept(promoted: Settings, version: ModelVersion) -> None:
    recorded = read_record(version)
    assert recorded.settings == yaml.safe_load((promoted.root / "params.yaml").read_text())
    assert recorded.lock == (promoted.root / "dvc.lock").read_text()
    assert recorded.metrics == {"adapted.macro.video_auc": 0.75}
    assert any(line.startswith("torch==") for line in recorded.environment)
    assert bool(recorded.changes) == (version.tags["git.dirty"] == "true")


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({}, "outside of a git repository"),
        ({"git.commit": "1" * 40, "git.dirty": "false"}, r"did not keep dvc\.lock"),
        ({"git.commit": "1" * 40, "git.dirty": "true", "kept": "all"}, "uncommitted changes"),
    ],
)
def test_a_run_that_kept_too_little_is_refused(
    promoted: Settings, version: ModelVersion, tags: dict[str, str], says: str
) -> None:
    registry.connect(promoted.mlflow)
    with mlflow.start_run(tags=tags) as run:
        for name in ("params.yaml", "dvc.lock", "metrics.json") if "kept" in tags else ():
            mlflow.log_text("", name)
    other = ModelVersion(version.name, "7", 0, run_id=run.info.run_id)
    with pytest.raises(UserError, match=says):
        read_record(other)


def test_a_version_without_a_run_is_refused(promoted: Settings) -> None:
    by_hand = ModelVersion("by-hand", "1", 0)
    for ask in (read_record, lambda version: trace(registry.connect(promoted.mlflow), version)):
        with pytest.raises(UserError, match="by-hand version 1 was registered without a run"):
            ask(by_hand)


def test_runs_that_are_gone_or_of_others_are_named(promoted: Settings, version: ModelVersion) -> None:
    client = registry.connect(promoted.mlflow)
    gone = ModelVersion(version.name, "8", 0, run_id="0" * 32)
    for ask in (read_record, lambda version: trace(client, version)):
        with pytest.raises(UserError, match="version 8 is gone from MLflow"):
            ask(gone)
    for source in (CodeDatasetSource({}), CodeDatasetSource({"dvc.path": "a", "dvc.md5": "b"})):
        with mlflow.start_run() as run:
            mlflow.log_input(MetaDataset(source, name="theirs"))  # in no role
        with pytest.raises(UserError, match="names its datasets otherwise"):
            trace(client, ModelVersion(version.name, "9", 0, run_id=run.info.run_id))


@pytest.mark.parametrize(
    "command", [["lineage"], ["reproduce"], ["export", "--out", "model.pt2", "--format", "torch"]]
)
def test_a_store_that_stops_answering_is_named(
    promoted: Settings, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Between `connect` and the first question."""

    def fail(*_: object) -> None:
        raise MlflowException("the database is locked")

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", fail)
    arguments = [*command, "champion", "--params", str(promoted.root / "params.yaml")]
    ended = CliRunner().invoke(app, arguments).exception
    assert isinstance(ended, UserError)
    assert "stopped answering (the database is locked)" in str(ended)


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, str]:
    """A repository with two commits to code.py; the first one's name comes with it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    for text in ("first = 1\n", "second = 2\n"):
        (folder / "code.py").write_text(text)
        git(folder, "add", "code.py")
        git(folder, "commit", "-qm", text)
    return folder, git(folder, "rev-parse", "HEAD~1").strip()


def record(commit: str, changes: str = "") -> Recorded:
    return Recorded(commit, changes, {}, "", {}, ())


def test_a_clone_has_the_revision_and_its_changes(repository: tuple[Path, str], tmp_path: Path) -> None:
    folder, first = repository
    git(folder, "checkout", "-q", first)
    (folder / "code.py").write_text("first = 1\nmore = 2\n")
    changes = git(folder, "diff", "HEAD")
    git(folder, "checkout", "-q", "-f", "-")
    before = (folder / "code.py").read_text(), git(folder, "for-each-ref"), git(folder, "worktree", "list")
    clone(folder, record(first), tmp_path / "plain")
    assert (tmp_path / "plain" / "code.py").read_text() == "first = 1\n"
    clone(folder, record(first, changes), tmp_path / "changed")
    assert (tmp_path / "changed" / "code.py").read_text() == "first = 1\nmore = 2\n"
    assert before == ((folder / "code.py").read_text(), git(folder, "for-each-ref"), git(folder, "worktree", "list"))
    with pytest.raises(UserError, match="is there already"):
        clone(folder, record(first), tmp_path / "plain")
    with pytest.raises(UserError, match="do not apply"):
        clone(folder, record(first, changes.replace("first", "other")), tmp_path / "refused")
    with pytest.raises(UserError, match="is not in"):
        clone(folder, record("0123456789" * 4), tmp_path / "unknown")
    with pytest.raises(UserError, match="lies in no git repository"):
        clone(tmp_path, record(first), tmp_path / "outside")


def test_a_clone_finds_its_files_and_leaves_those_of_the_workspace_alone(promoted: Settings, tmp_path: Path) -> None:
    tree = yaml.safe_load((promoted.root / "params.yaml").read_text())
    tree["backbone"]["weights"] = "../weights.pth"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "dvc.yaml").write_text("stages: {}\n")
    recorded = replace(record("1" * 40), settings=tree, lock="schema: '2.0'\n")
    workspace = prepare(promoted, recorded, tmp_path / "code")
    assert workspace == tmp_path / "code" / "runs" / promoted.root.name
    with own_address():
        made = load_settings(workspace / "params.yaml")
    assert made.path(made.code) == tmp_path / "code"
    assert made.path(made.backbone.weights) == promoted.root.parent / "weights.pth"
    assert made.path(made.adapter.cache or "") == promoted.path(promoted.adapter.cache or "")
    for place in (made.mlflow.tracking_uri, made.mlflow.artifacts, made.ray.storage):
        assert str(tmp_path / "code") in place
    assert (workspace / "dvc.lock").read_text() == recorded.lock
    assert (workspace / "dvc.yaml").read_text() == "stages: {}\n"
    without = {"code", "mlflow", "ray", "backbone", "adapter"}
    assert made.model_dump(exclude={*without, "root"}) == promoted.model_dump(exclude={*without, "root"})
    inside = promoted.model_copy(update={"code": promoted.root})
    assert prepare(inside, recorded, tmp_path / "code") == tmp_path / "code"


def test_metrics_agree_within_the_tolerance_and_on_both_sides() -> None:
    recorded = {"same": 0.5, "near": 0.25, "far": 0.125, "lost": 1.0}
    found = {"same": 0.5, "near": 0.25 + 1e-7, "far": 0.126, "new": 2.0}
    assert differences(recorded, found, 1e-6) == [
        Difference("far", 0.125, 0.126),
        Difference("lost", 1.0, None),
        Difference("new", None, 2.0),
    ]
    assert [row.name for row in differences(recorded, recorded, 0.0)] == []


def test_what_is_no_number_agrees_with_itself_alone() -> None:
    nan, inf = float("nan"), float("inf")
    recorded = {"both": nan, "was": nan, "is": 0.5, "large": inf, "sign": inf}
    found = {"both": nan, "was": 0.5, "is": nan, "large": inf, "sign": -inf}
    assert [row.name for row in differences(recorded, found, 1.0)] == ["is", "sign", "was"]


EVALUATE = """mkdir reports && echo '{"same": 0.5, "auc": 0.75}' > reports/metrics.json"""
STAGES = {name: {"cmd": "true"} for name in ("validate", "search", "train")} | {"evaluate": {"cmd": EVALUATE}}


def test_the_command_ends_with_1_where_a_metric_differs(
    promoted: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a repository whose stages take no time."""
    tree = yaml.safe_load((promoted.root / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(params := yaml.safe_dump(tree | {"code": "."}))
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    git(tmp_path, "init", "-q")
    with Repo.init(str(tmp_path)):
        git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "code")
    client = registry.connect(promoted.mlflow)
    tags = {"git.commit": git(tmp_path, "rev-parse", "HEAD").strip(), "git.dirty": "false"}
    with mlflow.start_run(tags=tags) as run:
        mlflow.log_text(params, "params.yaml")
        mlflow.log_text("schema: '2.0'\nstages: {}\n", "dvc.lock")
        mlflow.log_text('{"same": 0.5, "auc": 0.7}', "metrics.json")
    model = client.create_registered_model(f"{promoted.mlflow.model}-again").name
    client.create_model_version(model, "file:///nowhere", run.info.run_id)
    asked = ["reproduce", f"models:/{model}/1", "--params", str(tmp_path / "params.yaml")]
    monkeypatch.setattr(sys, "argv", ["masm", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    printed = capfd.readouterr()
    assert "1 of 2 metrics" in printed.err
    assert [line.split()[1:6:2] for line in printed.out.splitlines() if "auc" in line] == [["auc", "0.7", "0.75"]]


def test_packages_that_changed_are_named() -> None:
    assert changed_packages(["a==1", "b==2", "c==3"], ["a==1", "b==2.1", "d==4"]) == [
        "b 2 -> 2.1",
        "c 3 -> absent",
        "d absent -> 4",
    ]
