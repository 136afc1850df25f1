"""The registry and the stage `promote` against a real MLflow on SQLite: every test has a store of its own."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from masm import registry
from masm.detector import Detector
from masm.errors import UserError
from masm.lineage import code_changes, environment, is_clean, lineage, settings_hash
from masm.metrics import area_under_curve
from masm.provenance import trace
from masm.settings import Settings
from masm.tracking import Recorder, journal_path, unsent
from pipelines import promote
from tests.registry.runs import aliases, shifted
from tests.serving.workspace import (
    PROFILE,
    TESTS,
    lock_data,
    make_workspace,
    own_address,
    save,
    tiny_detector,
    use_detector,
    use_findings,
    use_scores,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, store: Path) -> Iterator[Settings]:
    with own_address():
        yield make_workspace(tmp_path / "workspace", store)


def run_promote(settings: Settings) -> dict[str, Any]:
    promote.main(settings)
    return json.loads((settings.root / "reports" / "promotion.json").read_text())


def roles(settings: Settings) -> dict[int, tuple[str, ...]]:
    return aliases(registry.connect(settings.mlflow), settings)


def test_empty_registry_has_no_versions_and_no_champion(settings: Settings) -> None:
    client = registry.connect(settings.mlflow)
    assert registry.list_versions(client, settings.mlflow.model) == []
    assert registry.champion(client, settings.mlflow.model) is None


def test_first_version_becomes_champion_and_is_listed_with_its_auc(settings: Settings) -> None:
    scores = use_detector(settings, tiny_detector(0))
    expected = np.mean([area_under_curve(*_labels_and_scores(scores, name)) for name in TESTS])
    report = run_promote(settings)
    assert (report["version"], report["aliases"], report["verdict"]) == (1, ["champion"], "promoted")
    client = registry.connect(settings.mlflow)
    (row,) = registry.list_versions(client, settings.mlflow.model)
    assert row.video_auc is not None
    assert row.video_auc.value == pytest.approx(expected, abs=1e-12)
    assert row.video_auc.low <= row.video_auc.value <= row.video_auc.high
    assert (row.verdict, row.run_id) == ("promoted", report["run_id"])
    champion = registry.champion(client, settings.mlflow.model)
    assert champion is not None
    assert int(champion.version) == 1


def _labels_and_scores(scores: pd.DataFrame, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    rows = scores[scores["dataset"] == dataset]
    return rows["label"].to_numpy(), rows["score"].to_numpy()


def test_run_keeps_settings_history_data_and_lineage(settings: Settings) -> None:
    run_id = run_promote(settings)["run_id"]
    client = registry.connect(settings.mlflow)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == str(settings.train.lr)
    assert run.data.params["hyperparameters.rank"] == "2"
    assert run.data.metrics["adapted.macro.video_auc"] == 0.75
    assert [point.value for point in client.get_metric_history(run_id, "train.val_auc")] == [0.6, 0.8]
    assert run.data.metrics["train.val_auc.swap"] == 0.8
    assert "train.val_auc.reals" not in run.data.metrics  # one class: undefined
    datasets = {item.dataset.name: item for item in run.inputs.dataset_inputs}
    assert datasets["upsample"].dataset.digest == "0" * 12
    assert [tag.value for tag in datasets["upsample"].tags if tag.key == "mlflow.data.context"] == ["test"]
    logged = {item.path for item in client.list_artifacts(run_id)}
    assert {"report.html", "scores.parquet", "metrics.json", "best.json", "environment.txt", "decision.json"} <= logged
    version = client.get_model_version(settings.mlflow.model, "1")
    assert {"git.commit", "git.dirty", "settings.hash", "environment.hash"} <= set(version.tags)
    for key in lineage(settings, {"upsample": ""}):
        assert version.tags[key] == run.data.tags[key]
    assert version.tags["backbone.sha256"] == "b" * 64


def test_the_run_names_those_of_the_search_and_of_the_training(settings: Settings) -> None:
    name = settings.root.parent.name
    away = settings.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    for stage, where, patience in (("train", settings.mlflow, 60), ("search", away, 0)):
        with Recorder(where, journal_path(settings.root, stage), patience) as recorder:
            recorder.start(f"{stage}-{name}", stage, {}, {})
    run_id = run_promote(settings)["run_id"]  # which sends what the search could not
    client = registry.connect(settings.mlflow)
    version, run = client.get_model_version(settings.mlflow.model, "1"), client.get_run(run_id)
    for stage, found in trace(client, version)["stages"].items():
        assert client.get_run(found).info.run_name == stage
        assert run.data.tags[f"{stage}_run_id"] == found
    assert unsent(settings.root) == []


def test_the_digests_of_the_data_are_those_of_dvc(settings: Settings) -> None:
    locked = {name: hashlib.md5(name.encode()).hexdigest() + ".dir" for name in settings.datasets}
    lock_data(settings.root, locked)
    run_id = run_promote(settings)["run_id"]
    client = registry.connect(settings.mlflow)
    run = client.get_run(run_id)
    version = client.get_model_version(settings.mlflow.model, "1")
    shown = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    for name, digest in locked.items():
        assert run.data.tags[f"data.{name}"] == version.tags[f"data.{name}"] == digest
        assert digest.startswith(shown[name])


def test_better_version_takes_champion_and_the_old_one_keeps_its_tag(settings: Settings) -> None:
    scores = use_detector(settings, tiny_detector(0))
    run_promote(settings)
    use_scores(settings, shifted(scores, 10))
    report = run_promote(settings)
    assert (report["verdict"], report["aliases"], report["video_auc"]) == ("promoted", ["champion"], 1.0)
    assert report["difference"] == pytest.approx(1.0 - report["champion_video_auc"])
    assert roles(settings) == {2: ("champion",), 1: ("challenger",)}
    client = registry.connect(settings.mlflow)
    assert registry.PREVIOUS_CHAMPION in client.get_model_version(settings.mlflow.model, "1").tags
    with registry.promoting(client, settings.mlflow.model) as lock:
        registry.move(lock, "1", "test", "to see it move")
    assert roles(settings) == {2: ("challenger",), 1: ("champion",)}
    assert registry.PREVIOUS_CHAMPION not in client.get_model_version(settings.mlflow.model, "1").tags
    assert registry.PREVIOUS_CHAMPION in client.get_model_version(settings.mlflow.model, "2").tags


@pytest.mark.parametrize(("change", "reason"), [(0.0, "a tie keeps the champion"), (-10.0, "not better")])
def test_version_that_is_not_better_stays_challenger(settings: Settings, change: float, reason: str) -> None:
    scores = use_detector(settings, tiny_detector(0))
    run_promote(settings)
    use_scores(settings, shifted(scores, change))
    report = run_promote(settings)
    assert (report["version"], report["verdict"], report["aliases"]) == (2, "held", ["challenger"])
    assert report["reason"].startswith(reason)
    assert roles(settings) == {2: ("challenger",), 1: ("champion",)}
    client = registry.connect(settings.mlflow)
    assert registry.PREVIOUS_CHAMPION not in client.get_model_version(settings.mlflow.model, "1").tags


def better_on(dataset: str, scores: pd.DataFrame) -> pd.DataFrame:
    """The same scores, perfect on this dataset and upside down on the others."""
    return pd.concat([shifted(part, 20 if name == dataset else -20) for name, part in scores.groupby("dataset")])


@pytest.mark.parametrize(("measures_its_source", "verdict"), [("upsample", "held"), ("denoise", "promoted")])
def test_dataset_whose_classes_have_different_sources_does_not_decide(
    settings: Settings, measures_its_source: str, verdict: str
) -> None:
    use_findings(settings.root, {measures_its_source: "fake: none of its 12 videos was made from the reals"})
    scores = use_detector(settings, tiny_detector(0))
    first = run_promote(settings)
    (deciding,) = set(TESTS) - {measures_its_source}
    assert first["video_auc"] == pytest.approx(area_under_curve(*_labels_and_scores(scores, deciding)))
    use_scores(settings, better_on("upsample", scores))
    report = run_promote(settings)
    assert report["verdict"] == verdict
    assert report["video_auc"] == (1.0 if verdict == "promoted" else 0.0)
    assert f"{measures_its_source} could not decide" in report["reason"]
    assert "none of its 12 videos was made from the reals" in report["reason"]


def test_nothing_is_promoted_over_a_champion_where_no_dataset_can_decide(settings: Settings) -> None:
    scores = use_detector(settings, tiny_detector(0))
    run_promote(settings)
    use_findings(settings.root, dict.fromkeys(TESTS, "of none of its videos is it known what it was made from"))
    use_scores(settings, shifted(scores, 10))
    report = run_promote(settings)
    assert (report["verdict"], report["aliases"]) == ("held", ["challenger"])
    assert "no test dataset that can decide" in report["reason"]
    assert "video_auc" not in report


def test_first_model_is_held_where_no_dataset_can_decide(settings: Settings) -> None:
    use_findings(settings.root, dict.fromkeys(TESTS, "of none of its videos is it known what it was made from"))
    report = run_promote(settings)
    assert (report["verdict"], report["aliases"]) == ("held", ["challenger"])
    assert report["reason"].startswith("no test dataset that can decide has both classes: nothing to judge by")


def test_champion_judged_on_other_data_is_scored_again(settings: Settings) -> None:
    real = use_detector(settings, tiny_detector(0))
    use_scores(settings, shifted(real, 10))  # what the champion scored on the former data: all right
    run_promote(settings)
    lock_data(settings.root, dict.fromkeys(settings.datasets, "0" * 32) | {"upsample": "1" * 32})
    use_scores(settings, shifted(real, 0.2))
    report = run_promote(settings)
    on_new_data = np.mean([area_under_curve(*_labels_and_scores(real, name)) for name in TESTS])
    assert report["champion_video_auc"] == pytest.approx(on_new_data, abs=1e-9)
    assert (report["verdict"], report["aliases"]) == ("promoted", ["champion"])


def test_other_training_data_do_not_make_the_champion_score_again(settings: Settings) -> None:
    real = use_detector(settings, tiny_detector(0))
    use_scores(settings, shifted(real, 10))
    run_promote(settings)
    lock_data(settings.root, dict.fromkeys(settings.datasets, "0" * 32) | {"swap": "1" * 32})
    use_scores(settings, real)
    assert run_promote(settings)["champion_video_auc"] == 1.0


def test_champion_for_other_crops_is_not_compared(settings: Settings) -> None:
    other = type(PROFILE)("given", PROFILE.size, 1.5, None)
    save(tiny_detector(0), settings.root / "models" / "detector", other)
    run_promote(settings)
    use_detector(settings, tiny_detector(0))
    lock_data(settings.root, dict.fromkeys(settings.datasets, "1" * 32))
    report = run_promote(settings)
    assert (report["verdict"], report["aliases"]) == ("held", ["challenger"])
    assert "other crops" in report["reason"]


def test_detector_comes_back_from_the_registry(settings: Settings) -> None:
    detector = tiny_detector(3)
    use_detector(settings, detector)
    run_promote(settings)
    client = registry.connect(settings.mlflow)
    champion = registry.champion(client, settings.mlflow.model)
    assert champion is not None
    with registry.stored_detector(client, champion) as folder:
        loaded = Detector.load(folder, merged=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        stored = loaded.eval()(images)
        torch.testing.assert_close(stored, detector.eval()(images), atol=1e-5, rtol=0)


def test_verdict_stands_in_the_report_the_run_and_the_version(settings: Settings) -> None:
    report = run_promote(settings)
    page = (settings.root / "reports" / "decision.html").read_text()
    assert "there is no champion yet" in page
    client, model = registry.connect(settings.mlflow), settings.mlflow.model
    assert mlflow.artifacts.load_text(f"runs:/{report['run_id']}/report.html") == page
    decision = json.loads(mlflow.artifacts.load_text(f"runs:/{report['run_id']}/decision.json"))
    assert decision == {key: report[key] for key in decision}
    assert [each["name"] for each in decision["conditions"]] == ["calibration error", "latency (ms)"]
    assert 0 < decision["conditions"][-1]["value"] < 1000
    version = client.get_model_version(model, "1")
    assert "latency (ms)" in version.tags["conditions"]
    assert f"/runs/{report['run_id']}/artifacts/report.html)" in version.description


def test_model_that_misses_a_floor_is_held_from_the_first(settings: Settings) -> None:
    scores = use_detector(settings, tiny_detector(0))
    use_scores(settings, shifted(scores, -20))
    gate = settings.gate.model_copy(update={"floors": {"default": 0.5}})
    report = run_promote(settings.model_copy(update={"gate": gate}))
    assert (report["verdict"], report["aliases"]) == ("held", ["challenger"])
    assert "not met: floor.upsample 0.000, limit 0.5" in report["reason"]


def stored_model(settings: Settings) -> Path:
    """The folder in which the artifact store keeps the only model that was logged."""
    (path,) = Path(settings.mlflow.artifacts).rglob("manifest.json")
    return path.parent


def test_download_is_the_whole_model_and_its_tag_seals_it(settings: Settings, tmp_path: Path) -> None:
    run_promote(settings)
    client = registry.connect(settings.mlflow)
    version = registry.find_version(client, f"models:/{settings.mlflow.model}@champion")
    compiled = stored_model(settings) / "code" / "masm" / "__pycache__" / "errors.cpython-311.pyc"
    compiled.parent.mkdir()  # MLflow imports a model of a local store in place
    compiled.write_bytes(b"not what Python wrote")
    folder = registry.download(client, version, tmp_path / "copy")
    for name in ("model.safetensors", "detector.json"):
        copied, own = folder / "artifacts" / "detector" / name, settings.root / "models" / "detector" / name
        assert copied.read_bytes() == own.read_bytes()
    manifest = (folder / "manifest.json").read_bytes()
    assert version.tags["artifacts.sha256"] == hashlib.sha256(manifest).hexdigest()
    listed = json.loads(manifest)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == present - {"manifest.json"}
    for name, value in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("artifacts/detector/model.safetensors", flip, "is not what was registered"),
    ("code/masm/detector.py", Path.unlink, "is missing"),
    ("manifest.json", flip, "is not what was registered"),
    ("manifest.json", Path.unlink, "is missing"),
    ("code/torch.py", lambda path: path.write_text("print('imported before the real one')"), "was added"),
]


def test_damaged_model_is_not_handed_out(settings: Settings, tmp_path: Path) -> None:
    run_promote(settings)
    stored, whole = stored_model(settings), tmp_path / "whole"
    shutil.copytree(stored, whole)
    client = registry.connect(settings.mlflow)
    version = registry.find_version(client, f"models:/{settings.mlflow.model}/1")
    for number, (name, damage, says) in enumerate(DAMAGES):
        damage(stored / name)
        with pytest.raises(registry.DamagedModel, match=rf"version 1: .*{re.escape(name)} {says}"):
            registry.download(client, version, tmp_path / str(number))
        shutil.rmtree(stored)
        shutil.copytree(whole, stored)
    registry.download(client, version, tmp_path / "restored")
    shutil.rmtree(stored)
    with pytest.raises(registry.DamagedModel, match="version 1: its files are not in the artifact store"):
        registry.download(client, version, tmp_path / "gone")


@pytest.mark.parametrize("name", ["model.safetensors", "scores.parquet"])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_nothing_replaces_a_champion_that_cannot_be_judged(
    settings: Settings, name: str, damage: Callable[[Path], object]
) -> None:
    scores = use_detector(settings, tiny_detector(0))
    run_promote(settings)
    (stored,) = Path(settings.mlflow.artifacts).rglob(name)
    damage(stored)
    use_scores(settings, shifted(scores, 10))
    report = run_promote(settings)
    assert (report["verdict"], report["aliases"]) == ("held", ["challenger"])
    assert re.match(rf"not compared: .* version 1: .*{re.escape(name)}", report["reason"])
    assert roles(settings) == {2: ("challenger",), 1: ("champion",)}


@pytest.mark.parametrize("name", ["models/train.json", "reports/scores.parquet", "models/detector/detector.json"])
def test_missing_output_of_a_former_stage_is_the_users_mistake(settings: Settings, name: str) -> None:
    (settings.root / name).unlink()
    with pytest.raises(UserError, match=name):
        promote.main(settings)


def test_store_that_cannot_be_opened_is_the_users_mistake(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "not-a-database").write_text("plain text, and long enough to be no SQLite header at all")
    uri = f"sqlite:///{tmp_path / 'not-a-database'}"
    with pytest.raises(UserError, match="cannot be used"):
        registry.connect(settings.mlflow.model_copy(update={"tracking_uri": uri}))


def test_server_that_does_not_answer_is_the_users_mistake(settings: Settings) -> None:
    with pytest.raises(UserError, match="does not answer"):
        registry.connect(settings.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}))


@pytest.mark.slow
def test_processes_may_make_the_same_store_at_once(tmp_path: Path) -> None:
    settings = make_workspace(tmp_path / "workspace", tmp_path / "fresh.db")
    code = "from masm import registry, settings; registry.connect(settings.load_settings().mlflow)"
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=settings.root) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_only_code_and_settings_make_a_tree_dirty(settings: Settings, tmp_path: Path) -> None:
    root = settings.root
    inside = settings.model_copy(update={"code": root})
    (root / "code.py").write_text("first = 1\n")
    assert lineage(inside, {})["git.commit"] == "none"
    git(root, "init")
    git(root, "add", "code.py", "params.yaml", "dvc.lock", "reports")
    git(root, "commit", "-m", "first")
    lock_data(root, {"swap": "2" * 32})
    (root / "reports" / "metrics.json").write_text("{}")
    (root / "untracked.txt").write_text("not code\n")
    assert lineage(inside, {})["git.dirty"] == "false"
    assert is_clean(lineage(inside, {}))
    assert len(lineage(inside, {})["git.commit"]) == 40
    (root / "code.py").write_text("second = 2\n")
    assert lineage(inside, {})["git.dirty"] == "true"
    assert not is_clean(lineage(inside, {}))
    assert "+second = 2" in code_changes(root)


def test_tree_outside_of_git_is_not_clean(settings: Settings, tmp_path: Path) -> None:
    outside = settings.model_copy(update={"code": tmp_path})
    tags = lineage(outside, {})
    assert tags["git.commit"] == "none"
    assert not is_clean(tags)


def test_environment_is_what_pip_lists_whatever_has_been_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "zipp-1.0.dist-info").mkdir()
    (tmp_path / "zipp-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: zipp\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)  # as setuptools and Ray do with what they bring along
    assert metadata.version("zipp") == "1.0"
    command = [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.lower().split()
    environment.cache_clear()
    assert list(environment()) == sorted(listed)


def test_settings_hash_does_not_know_where_the_model_serves(settings: Settings) -> None:
    serving = settings.serving.model_copy(update={"media_root": Path("/srv"), "port": 1234})
    assert settings_hash(settings.model_copy(update={"serving": serving})) == settings_hash(settings)
    assert settings_hash(settings.model_copy(update={"seed": settings.seed + 1})) != settings_hash(settings)


def test_what_mlflow_refuses_is_one_sentence(settings: Settings) -> None:
    client = registry.connect(settings.mlflow)
    with pytest.raises(UserError, match="refuses this") as caught, registry.answering(settings.mlflow):
        client.get_registered_model("no-such-model")
    assert "\n" not in str(caught.value)
