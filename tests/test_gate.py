"""`masm registry` at work on SQLite: compare, promote, force, roll back, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import yaml
from click.testing import Result
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from typer.testing import CliRunner

from masm import registry
from masm.cli import app
from masm.errors import UserError
from masm.gate import basis_of, contender, present_basis
from masm.metrics import area_under_curve, expected_calibration_error
from masm.promotion import CALIBRATION_ERROR
from masm.registry import lock as locks
from masm.settings import Settings, load_settings
from tests.registry.runs import Logged, aliases, check_whole, log, register, shifted
from tests.serving.workspace import (
    DECISIONS,
    TESTS,
    lock_data,
    make_workspace,
    own_address,
    tiny_detector,
    use_detector,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, dict[str, Logged], pd.DataFrame]]:
    """A workspace whose detector is logged twice: with its own scores, and with better ones."""
    folder = tmp_path_factory.mktemp("gate")
    with own_address():
        settings = make_workspace(folder / "workspace", folder / "mlflow.db")
        scores = use_detector(settings, tiny_detector(0))
        logged = {"better": log(settings, shifted(scores, 10)), "plain": log(settings, scores)}
        yield settings, logged, scores


class Desk:
    """A registered model of its own, and the command `masm registry` for it."""

    def __init__(self, settings: Settings, params: Path, logged: dict[str, Logged]) -> None:
        self.settings, self.params, self.logged = settings, params, logged
        self.client = registry.connect(settings.mlflow)

    def register(self, name: str, promoted: bool) -> None:
        register(self.client, self.settings, self.logged[name], promoted)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["registry", *arguments, "--params", str(self.params)], env={"COLUMNS": "300"})

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def aliases(self) -> dict[int, tuple[str, ...]]:
        return aliases(self.client, self.settings)

    def tags(self, version: int) -> dict[str, str]:
        return self.client.get_model_version(self.settings.mlflow.model, str(version)).tags


@pytest.fixture
def desk(base: tuple[Settings, dict[str, Logged], pd.DataFrame], request: pytest.FixtureRequest) -> Desk:
    tree = yaml.safe_load((base[0].root / "params.yaml").read_text())
    tree["mlflow"]["model"] = request.node.name.replace("[", "-").replace("]", "")
    params = base[0].root / f"{tree['mlflow']['model']}.yaml"
    params.write_text(yaml.safe_dump(tree))
    return Desk(load_settings(params), params, base[1])


def test_better_version_wins_and_a_tie_is_held_with_exit_code_3(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("plain", False)
    desk.register("better", False)
    held = desk.run("promote", "2")
    assert held.exit_code == 3
    assert "a tie keeps the champion" in held.stdout
    assert desk.aliases() == {1: ("champion",), 2: ("challenger",), 3: ()}
    won = desk.run("promote", "3")
    assert won.exit_code == 0
    assert "version 3 is champion: better" in won.stdout
    assert desk.aliases() == {1: ("challenger",), 2: (), 3: ("champion",)}
    assert desk.tags(3)["verdict"] == "promoted"
    assert desk.tags(3)["promoted_by"].endswith(", masm registry promote")
    check_whole(desk.client, desk.settings)


def test_force_needs_a_reason_and_records_it(desk: Desk) -> None:
    desk.register("better", True)
    desk.register("plain", False)
    assert desk.run("promote", "challenger").exit_code == 3
    forced = desk.run("promote", "2", "--force", "the better one is too slow")
    assert forced.exit_code == 0
    assert desk.aliases() == {1: ("challenger",), 2: ("champion",)}
    assert desk.tags(2)["verdict"] == "held"
    assert registry.trail(desk.client, desk.settings.mlflow.model)[-1].reason == "forced: the better one is too slow"
    check_whole(desk.client, desk.settings)


def test_verdict_of_the_command_stands_in_the_run(desk: Desk) -> None:
    desk.register("better", True)
    desk.register("plain", False)
    run = desk.logged["plain"].run.run_id
    desk.run("promote", "2", "--force", "the better one is <slow>.")
    page = mlflow.artifacts.load_text(f"runs:/{run}/report.html")
    assert "made champion all the same: the better one is &lt;slow&gt;.</p>" in page
    assert page.count("<b>Held</b>") == 1
    decision = mlflow.artifacts.load_dict(f"runs:/{run}/decision.json")
    assert decision["verdict"] == "held"
    assert decision["reason"] == desk.tags(2)["reason"]
    assert desk.run("promote", "1").exit_code == 0
    assert "<b>Promoted</b>" in mlflow.artifacts.load_text(f"runs:/{desk.logged['better'].run.run_id}/report.html")


def test_version_of_another_model_is_not_promoted(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("plain", False)
    other = desk.settings.mlflow.model_copy(update={"model": f"{desk.settings.mlflow.model}-other"})
    theirs = desk.settings.model_copy(update={"mlflow": other})
    register(desk.client, theirs, desk.logged["plain"], True)
    register(desk.client, theirs, desk.logged["better"], False)
    for extra in ([], ["--force", "I must"]):
        ended = desk.run("promote", f"models:/{other.model}/2", *extra).exception
        assert isinstance(ended, UserError)
        assert f"is not the model of this workspace, {desk.settings.mlflow.model}" in str(ended)
    assert desk.aliases() == {1: ("champion",), 2: ("challenger",)}
    printed = desk.run("compare", f"models:/{other.model}/2", "1").stdout
    assert f"{other.model} version 2" in printed
    assert f"{desk.settings.mlflow.model} version 1" in printed


def test_rollback_settles_what_a_dead_process_left(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.01)
    desk.register("plain", True)
    desk.register("better", False)
    desk.client.set_registered_model_alias(desk.settings.mlflow.model, "champion", "2")
    desk.client.create_registered_model(f"{desk.settings.mlflow.model}.promoting", {"holder": "dead"})
    assert desk.run("rollback").exit_code == 0
    assert desk.aliases() == {1: ("champion",), 2: ("challenger",)}
    check_whole(desk.client, desk.settings)


def test_figures_recorded_on_other_data_do_not_count(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("plain", False)
    version = desk.client.get_model_version(desk.settings.mlflow.model, "2")
    there = contender(desk.client, desk.settings, version, basis_of(desk.settings, version.tags), {})
    assert there.metrics == {"adapted.macro.video_auc": 0.75}
    desk.client.set_model_version_tag(version.name, "2", "data.upsample", "1" * 32)
    version = desk.client.get_model_version(version.name, "2")
    anew = contender(desk.client, desk.settings, version, present_basis(desk.settings), {"denoise": "sign"})
    part = anew.scores[anew.scores["dataset"] == "upsample"]
    stated = DECISIONS["video"].calibration.probability(part["score"].to_numpy())
    expected = expected_calibration_error(part["label"].to_numpy(), stated)
    assert anew.metrics == {CALIBRATION_ERROR: pytest.approx(expected, abs=1e-12)}
    assert anew.missing == "recorded on other data"


def test_rollback_and_its_own_undoing(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("better", True)
    assert desk.run("rollback").exit_code == 0
    assert desk.aliases() == {1: ("champion",), 2: ("challenger",)}
    assert registry.trail(desk.client, desk.settings.mlflow.model)[-1].reason == "rollback"
    check_whole(desk.client, desk.settings)
    assert desk.run("rollback").exit_code == 0
    assert desk.aliases() == {1: ("challenger",), 2: ("champion",)}
    check_whole(desk.client, desk.settings)


def test_what_another_made_champion_meanwhile_keeps_its_report(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.register("plain", True)
    desk.register("better", False)
    report_of = registry.report_of

    def while_another_promotes(version: ModelVersion) -> str:
        monkeypatch.setattr(registry, "report_of", report_of)
        assert desk.run("promote", "2").exit_code == 0
        return report_of(version)

    monkeypatch.setattr(registry, "report_of", while_another_promotes)
    ended = desk.run("promote", "2").exception
    assert isinstance(ended, UserError)
    assert "version 2 is champion already" in str(ended)
    run = desk.logged["better"].run.run_id
    assert mlflow.artifacts.load_dict(f"runs:/{run}/decision.json")["verdict"] == "promoted"


def test_two_rollbacks_at_once_are_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.01)
    desk.register("plain", True)
    desk.register("better", True)
    check = registry.stored_detector

    def while_another_does(client: MlflowClient, version: ModelVersion) -> AbstractContextManager[Path]:
        monkeypatch.setattr(registry, "stored_detector", check)
        assert desk.run("rollback").exit_code == 0
        return check(client, version)

    monkeypatch.setattr(registry, "stored_detector", while_another_does)
    assert "version 1 is champion" in desk.run("rollback").stdout
    assert desk.aliases() == {1: ("champion",), 2: ("challenger",)}
    check_whole(desk.client, desk.settings)


def test_comparison_is_that_of_the_recorded_scores(
    desk: Desk, base: tuple[Settings, dict[str, Logged], pd.DataFrame]
) -> None:
    desk.register("plain", True)
    desk.register("better", False)
    rows = {row["dataset"]: row for row in desk.json("compare", "2", "champion")}
    for name in TESTS:
        part = base[2][base[2]["dataset"] == name]
        plain = area_under_curve(part["label"].to_numpy(), part["score"].to_numpy())
        assert rows[name]["b"]["value"] == pytest.approx(plain, abs=1e-12)
        assert rows[name]["a"]["value"] == 1.0
        assert rows[name]["difference"]["value"] == pytest.approx(1 - plain, abs=1e-12)
    assert rows["macro"]["difference"]["value"] == pytest.approx(
        sum(rows[name]["difference"]["value"] for name in TESTS) / len(TESTS)
    )
    printed = desk.run("compare", "2").stdout
    assert "version 2" in printed
    assert "mean" in printed


def test_comparison_on_other_data_is_scored_anew(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("better", False)
    for version in ("1", "2"):
        desk.client.set_model_version_tag(desk.settings.mlflow.model, version, "data.upsample", "1" * 32)
    desk.client.set_model_version_tag(desk.settings.mlflow.model, "1", "data.denoise", "2" * 32)
    rows = desk.json("compare", "2", "1")  # the detectors are the same one, whatever was recorded
    assert [row["difference"]["value"] for row in rows] == [0.0] * 3


def test_damaged_version_is_neither_promoted_nor_forced_nor_rolled_back_to(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("better", True)
    uri = desk.client.get_model_version_download_uri(desk.settings.mlflow.model, "1")
    stored = Path(mlflow.artifacts.download_artifacts(uri)) / "artifacts" / "detector" / "model.safetensors"
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        for command in (["promote", "1"], ["promote", "1", "--force", "I must"], ["rollback"]):
            ended = desk.run(*command).exception
            assert isinstance(ended, UserError)
            assert "version 1: its file artifacts/detector/model.safetensors is not what was registered" in str(ended)
    finally:
        stored.write_bytes(whole)
    assert desk.aliases() == {1: ("challenger",), 2: ("champion",)}
    check_whole(desk.client, desk.settings)


def test_list_and_show_tell_who_promoted_also_from_outside(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("better", False)
    desk.client.set_registered_model_alias(desk.settings.mlflow.model, "champion", "2")
    by_version = {row["version"]: row for row in desk.json("list")}
    assert by_version[2]["promoted_by"] == "outside (MLflow UI or API)"
    assert by_version[2]["aliases"] == ["champion"]
    found = desk.json("show")
    assert found["version"]["version"] == 2
    assert [entry["version"] for entry in found["trail"]] == ["1", "2"]
    assert found["tags"]["protocol.hash"] == desk.tags(2)["protocol.hash"]
    for command in (["list"], ["show", "1"]):
        assert "outside (MLflow UI or API)" in desk.run(*command).stdout


def test_champion_is_not_judged_against_itself(desk: Desk) -> None:
    desk.register("plain", True)
    ended = desk.run("promote", "champion").exception
    assert isinstance(ended, UserError)
    assert "version 1 is champion already" in str(ended)
    assert desk.tags(1)["verdict"] == "promoted"


def test_recorded_scores_of_the_same_data_are_compared_whatever_the_workspace_holds_now(desk: Desk) -> None:
    desk.register("plain", True)
    desk.register("better", False)
    lock_data(desk.settings.root, dict.fromkeys(desk.settings.datasets, "3" * 32))
    try:
        assert desk.run("promote", "2").exit_code == 0
    finally:
        lock_data(desk.settings.root, dict.fromkeys(desk.settings.datasets, "0" * 32))
