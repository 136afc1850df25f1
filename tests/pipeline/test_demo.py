"""The whole pipeline for real, in a small workspace: what `make demo` does, and what comes after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from masm.decisions import read_decisions
from masm.detector import Detector
from masm.embeddings import read_embeddings
from masm.settings import load_settings
from tests.pipeline.workspace import edit, make_workspace, run
from tests.ports import free_port
from tests.waiting import answers, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BIN = Path(sys.executable).parent
PORT, DASHBOARD = "6391", "8291"  # not Ray's own: a cluster may be running here


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The programs of this environment, no address from outside, and a token file of our own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    token = tmp_path_factory.mktemp("ray") / "token"
    return {
        **clean,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_MODE": "disabled",
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """A workspace in which the demo has run."""
    folder = make_workspace(tmp_path_factory.mktemp("demo") / "workspace")
    done = run(str(BIN / "masm"), "demo", folder=folder, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder.parent / "demo.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def restored(workspace: Path) -> Iterator[Path]:
    """The workspace, whose params.yaml a test may change."""
    text = (workspace / "params.yaml").read_text()
    yield workspace
    (workspace / "params.yaml").write_text(text)


def changed_stages(folder: Path, environment: dict[str, str]) -> set[str]:
    status = run(str(BIN / "dvc"), "status", "--json", folder=folder, environment=environment)
    return set(json.loads(status.stdout))


def test_it_ends_with_a_champion_and_says_where_to_look(workspace: Path) -> None:
    printed = (workspace.parent / "demo.txt").read_text()
    for word in ("upsample", "denoise", "second-camera", "frame AUC", "video AUC", "champion", "decision.html"):
        assert word in printed
    promotion = json.loads((workspace / "reports" / "promotion.json").read_text())
    assert promotion["version"] == 1
    assert promotion["aliases"] == ["champion"]
    assert "<svg" in (workspace / "reports" / "decision.html").read_text()
    assert (workspace / "reports" / "data_docs" / "index.html").is_file()


def recorded_losses(workspace: Path) -> list[tuple[int, float]]:
    """The training loss of each epoch, as MLflow has it of the run that train.json names."""
    client = MlflowClient(f"sqlite:///{workspace}/mlflow.db")
    key = json.loads((workspace / "models" / "train.json").read_text())["run"]
    experiment = client.get_experiment_by_name("masm")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`masm.key` = '{key}'")
    assert (run.info.run_name, run.info.status) == ("train", "FINISHED")
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss"))


def test_the_training_told_mlflow_its_epochs(workspace: Path) -> None:
    history = json.loads((workspace / "models" / "train.json").read_text())["history"]
    assert recorded_losses(workspace) == [(line["epoch"], line["loss"]) for line in history]


def test_the_metrics_are_those_of_the_scores(workspace: Path) -> None:
    from sklearn.metrics import roc_auc_score

    scores = pd.read_parquet(workspace / "reports" / "scores.parquet")
    metrics = json.loads((workspace / "reports" / "metrics.json").read_text())
    assert scores["level"].max() == 5
    for (model, dataset), rows in scores[scores["distortion"] == "none"].groupby(["model", "dataset"]):
        assert metrics[f"{model}.{dataset}.frame_auc"] == pytest.approx(roc_auc_score(rows["label"], rows["score"]))
        videos = rows.groupby(["method", "video_id"])[["label", "score"]].mean()
        expected = roc_auc_score(videos["label"], videos["score"])
        assert metrics[f"{model}.{dataset}.video_auc"] == pytest.approx(expected)


def test_the_embeddings_are_those_that_masm_embed_writes(workspace: Path, environment: dict[str, str]) -> None:
    metrics = json.loads((workspace / "reports" / "metrics.json").read_text())
    for grouping in ("label", "method", "dataset"):
        assert -1 <= metrics[f"embeddings.by_{grouping}.silhouette"] <= 1
        assert 0 <= metrics[f"embeddings.by_{grouping}.knn_balanced_accuracy"] <= 1
    frames, embeddings = read_embeddings(workspace / "reports" / "embeddings.parquet")
    points = pd.read_csv(workspace / "reports" / "embedding_map.csv")
    assert points["sample_id"].tolist() == frames["sample_id"].tolist()
    command = [str(BIN / "masm"), "embed", "--model", "models:/masm-detector@champion", "--out", "../all.parquet"]
    done = run(*command, folder=workspace, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    every, written = read_embeddings(workspace.parent / "all.parquet")
    rows = pd.Index(every["sample_id"]).get_indexer(frames["sample_id"])
    np.testing.assert_allclose(written[rows], embeddings, atol=1e-5)


def test_the_search_chose_its_best_trial(workspace: Path) -> None:
    trials = pd.read_csv(workspace / "search" / "trials.csv")
    best = json.loads((workspace / "search" / "best.json").read_text())
    assert len(trials) == best["trials"] == 2
    assert best["score"] == pytest.approx(trials["score"].max())
    assert best["datasets"] == ["selfblend"]
    detector = Detector.load(workspace / "models" / "detector")
    assert detector.adapter.rank == best["hyperparameters"]["rank"]
    assert all(0 < decision.threshold < 1 for decision in read_decisions(detector.card).values())


def test_nothing_runs_again(workspace: Path, environment: dict[str, str]) -> None:
    again = run(str(BIN / "dvc"), "repro", folder=workspace, environment=environment)
    assert again.returncode == 0
    assert "Data and pipelines are up to date." in again.stdout
    assert "Running stage" not in again.stdout


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("train.lr", 5e-4, {"train"}),
        ("search.space.lambda_orth.upper", 0.5, {"search"}),
        ("datasets.denoise.camera", "phone", {"ingest@denoise", "validate"}),
        ("evaluate.draws", 300, {"evaluate", "promote"}),
        ("mlflow.experiment", "another", {"promote"}),
    ],
)
def test_a_change_reaches_the_stages_that_it_concerns(
    restored: Path, environment: dict[str, str], key: str, value: object, stages: set[str]
) -> None:
    edit(restored / "params.yaml", {key: value})
    assert changed_stages(restored, environment) == stages


def test_former_outputs_come_back(workspace: Path, environment: dict[str, str]) -> None:
    before = (workspace / "models" / "train.json").read_bytes()
    shutil.rmtree(workspace / "models")
    assert run(str(BIN / "dvc"), "checkout", "train", folder=workspace, environment=environment).returncode == 0
    assert (workspace / "models" / "train.json").read_bytes() == before


def test_the_registry_is_listed(workspace: Path, environment: dict[str, str]) -> None:
    listed = run(str(BIN / "masm"), "registry", "list", "--json", folder=workspace, environment=environment)
    (version,) = json.loads(listed.stdout)
    assert version["aliases"] == ["champion"]
    metrics = json.loads((workspace / "reports" / "metrics.json").read_text())
    assert version["video_auc"]["value"] == pytest.approx(metrics["adapted.macro.video_auc"])


def test_the_champion_is_made_again_and_its_registry_stays_as_it_is(
    workspace: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """From a clone of the code, with the data and the search's outcome of DVC's cache."""
    stored = store_rows(workspace / "mlflow.db")
    uri, again = "models:/masm-detector@champion", tmp_path / "again"
    command = [str(BIN / "masm"), "reproduce", uri, "--keep-search", "--out", str(again)]
    done = run(*command, folder=workspace, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    metrics = json.loads((workspace / "reports" / "metrics.json").read_text())
    assert f"all {len(metrics)} metrics agree to 1e-06" in done.stdout
    made = again / "runs" / workspace.name
    assert (made / "timings" / "train.json").is_file()
    assert (made / "models" / "detector").stat().st_mtime > (workspace / "models" / "detector").stat().st_mtime
    np.testing.assert_allclose(
        pd.read_parquet(made / "reports" / "scores.parquet")["score"],
        pd.read_parquet(workspace / "reports" / "scores.parquet")["score"],
        atol=1e-6,
    )
    assert store_rows(workspace / "mlflow.db") == stored


def store_rows(store: Path) -> dict[str, list[tuple[object, ...]]]:
    """What MLflow keeps of experiments, runs and the registry."""
    tables = ("experiments", "runs", "metrics", "model_versions", "registered_model_aliases", "model_version_tags")
    with closing(sqlite3.connect(store)) as database:
        return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


@pytest.fixture
def cluster(environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head node of its own, with the environment of a client of it."""
    ports = ["--port", PORT, "--dashboard-port", DASHBOARD, "--num-cpus", "2", "--object-store-memory", "200000000"]
    ports += ["--dashboard-agent-listen-port", str(free_port())]  # all Rays of a machine would take the same
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", *ports]
    head = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{DASHBOARD}"
    try:
        wait_for("the head node", lambda: answers(f"{address}/api/version"), process=head)
        yield {**environment, "RAY_API_SERVER_ADDRESS": address}
    finally:  # `ray stop` would end every Ray of this machine; told to end, these wait 30 s for each other
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_a_job_trains_the_same_and_its_result_is_pulled(workspace: Path, cluster: dict[str, str]) -> None:
    local = json.loads((workspace / "models" / "train.json").read_text())
    job = run(str(BIN / "masm"), "submit", "train", folder=workspace, environment=cluster)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    printed = json.loads(job.stdout[job.stdout.index('{\n  "train"') : job.stdout.rindex("}") + 1])["train"]
    assert printed == pytest.approx(local["metrics"], abs=1e-6)
    (left,) = [path for path in (workspace.parent / "ray").iterdir() if path.name.startswith("train-")]
    assert any(left.glob("checkpoint_*"))


def test_a_killed_training_goes_on_where_it_was(restored: Path, environment: dict[str, str], tmp_path: Path) -> None:
    changes = {"train.epochs": 6, "train.workers": 1, "ray.storage": str(tmp_path / "ray")}
    edit(restored / "params.yaml", changes)
    shutil.copytree(restored / "models", tmp_path / "models")
    command = [sys.executable, "-m", "pipelines.train"]
    try:
        first = subprocess.Popen(command, cwd=restored, env=environment, start_new_session=True)
        wait_for("a checkpoint", lambda: list((tmp_path / "ray").glob("train-*/checkpoint_*")), process=first)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        second = run(*command, folder=restored, environment=environment)
        assert second.returncode == 0, second.stderr[-3000:]
        history = json.loads((restored / "models" / "train.json").read_text())["history"]
        assert [line["epoch"] for line in history] == [1, 2, 3, 4, 5, 6]
        assert recorded_losses(restored) == [(line["epoch"], line["loss"]) for line in history]
        assert not list((tmp_path / "ray").glob("train-*"))
    finally:
        shutil.rmtree(restored / "models")
        shutil.copytree(tmp_path / "models", restored / "models")


@pytest.mark.parametrize(
    ("stage", "change", "code", "says"),
    [
        ("train", {"train.lrr": 1}, 2, "train.lrr: unknown setting; did you mean lr?"),
        (
            "train",
            {"backbone.name": "vit_tiny_patch16_224", "backbone.weights": "nowhere.safetensors"},
            2,
            "nowhere.safetensors",
        ),
        ("validate", {"checks.min_frames": 99}, 1, "frames per video"),
        ("ingest", {"faces.source": "photographs", "faces.folder": "gone", "crop.detector": "cascade"}, 2, "gone"),
    ],
)
def test_mistakes_end_with_one_message(
    restored: Path, environment: dict[str, str], stage: str, change: dict[str, object], code: int, says: str
) -> None:
    edit(restored / "params.yaml", change)
    arguments = [stage, "denoise"] if stage == "ingest" else [stage]
    command = [sys.executable, "-m", f"pipelines.{arguments[0]}", *arguments[1:]]
    docs, checks = restored / "reports" / "data_docs", restored / "reports" / "checks.json"
    kept = {path: path.read_bytes() for path in (checks, *docs.rglob("*.html"))} if stage == "validate" else {}
    ended = run(*command, folder=restored, environment=environment)
    for path in [path for path in docs.rglob("*.html") if kept]:
        path.unlink()
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert ended.returncode == code, ended.stderr[-3000:]
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_failed_stage_gives_the_demo_its_exit_code(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = make_workspace(tmp_path / "workspace", {"datasets.swap.camera": "holga"})
    ended = run(str(BIN / "masm"), "demo", folder=folder, environment=environment)
    assert ended.returncode == 2
    assert "there is no camera 'holga'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_lock_names_every_table(workspace: Path) -> None:
    from masm.data.versions import digests

    locked = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    found = digests(load_settings(workspace / "params.yaml"))
    assert found == {name: locked[f"ingest@{name}"]["outs"][0]["md5"] for name in found}
    assert len(set(found.values())) == 6
