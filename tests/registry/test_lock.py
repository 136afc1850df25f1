"""The lock in the registry, on SQLite: one holder, whoever dies."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow import MlflowClient

from masm import registry
from masm.errors import UserError
from masm.registry import lock as locks
from masm.settings import Mlflow
from tests.serving.workspace import own_address


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("lock")
    uri, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    with own_address():
        return registry.connect(Mlflow(tracking_uri=uri, artifacts=artifacts, experiment="lock", model="m"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "INTERVAL", 0.05)
    monkeypatch.setattr(locks, "PATIENCE", 4)


def test_holders_take_turns(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 10_000)
    inside, most = 0, 0

    def work(_: int) -> None:
        nonlocal inside, most
        for _ in range(3):
            with locks.held(client, "turns"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, range(3)))
    assert most == 1
    assert not client.search_registered_models("name LIKE 'turns%'")


def test_lock_of_a_dead_holder_is_taken_over_by_one_alone(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 60)  # 3 s, in which a living holder is done on a loaded machine too
    dead = locks.new_lock(client, "dead")
    assert dead.take() == dead.token
    inside: list[str] = []

    def work(_: int) -> int:
        with locks.held(client, "dead") as lock:
            inside.append(lock.token)
            time.sleep(0.02)
            lock.check()
            return inside.index(lock.token) - len(inside)  # -1 where nobody came after us

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(work, range(3))) == [-1] * 3
    assert len(inside) == 3
    with pytest.raises(UserError, match="another one promotes dead"):
        dead.check()
    assert not client.search_registered_models("name LIKE 'dead%'")


def test_slow_breaker_does_not_take_the_lock_of_the_next_holder(client: MlflowClient) -> None:
    dead, first = locks.new_lock(client, "slow"), locks.new_lock(client, "slow")
    dead.take()
    first.break_of(dead.token)
    assert first.take() == first.token
    with pytest.raises(Exception, match="already exists"):  # what a late one does whose look at the holder was earlier
        client.rename_registered_model("slow.promoting", f"slow.promoting.{dead.token}")
    first.check()
    first.give_back()


def test_slow_holder_does_not_remove_the_lock_of_another(client: MlflowClient) -> None:
    slow = locks.new_lock(client, "late")
    slow.take()
    with locks.held(client, "late") as other:
        slow.give_back()
        other.check()


def test_lost_answer_to_the_taking_is_no_other_holder(client: MlflowClient) -> None:
    lock = locks.new_lock(client, "twice")
    assert lock.take() == lock.token
    assert lock.take() == lock.token  # what a client sends again
    lock.give_back()


def test_mistake_under_the_lock_gives_it_back(client: MlflowClient) -> None:
    with pytest.raises(UserError, match="mine"), locks.held(client, "mistake"):
        raise UserError("mine")
    assert not client.search_registered_models("name LIKE 'mistake%'")
