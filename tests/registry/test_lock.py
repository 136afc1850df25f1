"""The lock in the registry, on SQLite: one holder, whoever dies."""

from __future__ import annotations

import threading
import time

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
    inside, most, turns = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, turns
        for _ in range(3):
            with locks.held(client, "turns"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1
                turns += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (turns, most) == (9, 1)
    assert not client.search_registered_models("name LIKE 'turns%'")


def test_lock_of_a_dead_holder_is_taken_over_by_one_alone(client: MlflowClient) -> None:
    dead = locks.new_lock(client, "dead")
    assert dead.take() == dead.token
    got: list[locks.Lock] = []
    threads = [threading.Thread(target=lambda: got.append(locks.acquire(client, "dead"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    released = 0
    while released < 3:  # each of the three gets it in its turn, and only one at a time
        time.sleep(0.02)
        assert len(got) <= released + 1
        if len(got) > released:
            got[released].check()
            got[released].give_back()
            released += 1
    for thread in threads:
        thread.join()
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
