"""Promotions that meet each other, and a server that dies in the middle: nothing is half promoted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient

from masm import registry
from masm.errors import UserError
from masm.gate import roll_back
from masm.registry import lock as locks
from masm.settings import Settings, load_settings
from tests.mlflow_server import Proxy, Server
from tests.registry.contest import NAMES, check_outcome, compete, prepare
from tests.registry.runs import Logged, aliases, check_whole, contestants, log, own_model, register
from tests.serving.workspace import ROOT, make_workspace, own_address, tiny_detector, use_detector

pytestmark = pytest.mark.slow


class Remote(NamedTuple):
    settings: Settings
    server: Server
    proxy: Proxy
    plain: Logged
    logged: dict[str, Logged]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A workspace whose MLflow is a server behind a proxy, with three logged runs."""
    folder = tmp_path_factory.mktemp("remote")
    server = Server(folder)
    with own_address(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        server.start()
        proxy = Proxy(server.port)
        try:
            settings = make_workspace(folder / "workspace", folder / "unused.db")
            uri = f"http://127.0.0.1:{proxy.server_address[1]}"
            at_server = settings.mlflow.model_copy(update={"tracking_uri": uri})
            settings = settings.model_copy(update={"mlflow": at_server})
            scores = use_detector(settings, tiny_detector(0))
            logged = {name: log(settings, theirs) for name, theirs in contestants(scores).items()}
            yield Remote(settings, server, proxy, log(settings, scores), logged)
        finally:
            proxy.shutdown()
            server.kill()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.05)
    monkeypatch.setattr(locks, "PATIENCE", 100)


def champion_and_challenger(remote: Remote) -> tuple[MlflowClient, Settings]:
    """A model of its own whose champion is version 1."""
    settings = own_model(remote.settings)
    client = registry.connect(settings.mlflow)
    register(client, settings, remote.plain, True)
    return client, settings


def test_server_lost_at_any_change_leaves_a_whole_champion(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    client, settings = champion_and_challenger(remote)
    remote.proxy.lose(None)
    register(client, settings, remote.logged["best"], True)
    changes = list(remote.proxy.changes)
    moved = next(index for index, change in enumerate(changes) if change.endswith("registered-models/alias"))
    assert len(changes) > moved + 4  # the entries come after it
    monkeypatch.setattr(locks, "PATIENCE", 3)
    cases = [(number, False) for number in range(len(changes))]
    for number, reaches in [*cases, (moved, True)]:
        client, settings = champion_and_challenger(remote)
        remote.proxy.lose(number, reaches)
        last = number == len(changes) - 1  # the lock is given back: all is done
        says = nullcontext() if last else pytest.raises(UserError, match="stopped answering")
        with says, registry.answering(settings.mlflow):
            register(client, settings, remote.logged["best"], True)
        remote.proxy.lose(None)
        champion = registry.champion(client, settings.mlflow.model)
        assert champion is not None
        assert champion.version == ("2" if (number, reaches) >= (moved, True) else "1"), changes[number]
        assert champion.tags["verdict"] == "promoted"
        register(client, settings, remote.logged["better"], False)  # the next one settles what was left
        check_whole(client, settings)
        assert len(registry.trail(client, settings.mlflow.model)) == int(champion.version)
        assert registry.champion(client, settings.mlflow.model).version == champion.version


def test_a_rollback_that_is_cut_short_is_not_undone_by_the_next(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the sentence asks for: MLflow is lost after the alias has moved, before and after that is entered."""
    client, settings = champion_and_challenger(remote)
    register(client, settings, remote.logged["best"], True)
    remote.proxy.lose(None)
    assert roll_back(client, settings, "test").version == 1
    changes = list(remote.proxy.changes)
    moved, entered = (
        next(index for index, change in enumerate(changes) if change.endswith(f"registered-models/{what}"))
        for what in ("alias", "set-tag")
    )
    cases = [(moved, True), (entered, False), (entered, True)]
    monkeypatch.setattr(locks, "PATIENCE", 3)
    for (number, reaches), version in zip(cases, (2, 1, 2), strict=True):
        remote.proxy.lose(number, reaches)
        with pytest.raises(UserError, match="run this again"), registry.answering(settings.mlflow):
            roll_back(client, settings, "test")
        remote.proxy.lose(None)
        assert roll_back(client, settings, "test").version == version, changes[number]
        assert aliases(client, settings) == {version: ("champion",), 3 - version: ("challenger",)}
        check_whole(client, settings)


def test_server_killed_in_the_middle_and_started_again(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 3)
    client, settings = champion_and_challenger(remote)
    remote.proxy.lose(5, True, remote.server.kill)
    with pytest.raises(UserError, match="stopped answering"), registry.answering(settings.mlflow):
        register(client, settings, remote.logged["best"], True)
    with pytest.raises(UserError, match="does not answer"):
        registry.connect(settings.mlflow)
    remote.server.start()
    remote.proxy.lose(None)
    register(client, settings, remote.logged["best"], True)
    check_whole(client, settings)
    assert registry.champion(client, settings.mlflow.model).run_id == remote.logged["best"].run.run_id


def test_two_at_once_over_http(remote: Remote, tmp_path: Path) -> None:
    _, settings = champion_and_challenger(remote)
    for name, logged in remote.logged.items():
        prepare(tmp_path, name, logged)
    with ThreadPoolExecutor() as pool:
        judged = list(pool.map(lambda name: compete(settings, tmp_path, name), NAMES))
    assert sorted(map(len, judged)) == [1, 2]  # one of them was judged again, against the other
    check_outcome(settings, tmp_path)


def test_two_processes_at_once_on_sqlite(tmp_path: Path) -> None:
    with own_address():
        settings = make_workspace(tmp_path / "workspace", tmp_path / "mlflow.db")
        scores = use_detector(settings, tiny_detector(0))
        client = registry.connect(settings.mlflow)
        register(client, settings, log(settings, scores), True)
        for name, theirs in contestants(scores).items():
            prepare(settings.root, name, log(settings, theirs))
        command = [sys.executable, "-m", "tests.registry.contest", str(settings.root)]
        started = [subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE) for name in NAMES]
        printed = [json.loads(process.communicate(timeout=200)[0]) for process in started]
        assert sorted(map(len, printed)) == [1, 2]
        check_outcome(load_settings(settings.root / "params.yaml"), settings.root)
        check_whole(client, settings)
