"""The follower: it goes on whatever happens to one of its looks, and leaves no copy of a model behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from masm import registry
from masm.serving.follower import FOLDERS, Follower, remove_leftovers
from masm.settings import Settings
from tests.serving.service import make_registry, set_champion
from tests.serving.workspace import own_address, tiny_detector


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with own_address():
        yield make_registry(tmp_path, tiny_detector(1), tiny_detector(2))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


class Clumsy:
    """An observer that fails when it first hears of a version."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def taken(self, version: str) -> None:
        self.heard.append(f"taken {version}")
        if len(self.heard) == 1:
            raise RuntimeError("nobody listens")

    def serves(self, version: str) -> None:
        self.heard.append(f"serves {version}")

    def refused(self, version: str, reason: str) -> None:
        raise AssertionError(f"{version}: {reason}")


def test_a_fault_of_one_look_does_not_end_the_others(settings: Settings, temporary: Path) -> None:
    client, observer = registry.connect(settings.mlflow), Clumsy()
    follower = Follower(client, f"models:/{settings.mlflow.model}@champion", settings.serving, observer)
    follower.poll()
    assert follower.trouble == "nobody listens"
    assert follower.current is not None
    follower.poll()
    assert follower.trouble is None
    set_champion(settings, "2")
    follower.poll()
    assert follower.current.version == "2"
    assert observer.heard == ["taken 1", "serves 1", "serves 1", "taken 2", "serves 2"]
    follower.close()
    assert not follower.current.scorer.folder.exists()


def test_copies_of_processes_that_are_gone_are_removed(temporary: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = {"own": f"{FOLDERS}{os.getpid()}-a", "gone": f"{FOLDERS}{gone.pid}-b", "other": f"{FOLDERS}notes"}
    for name in names.values():
        (temporary / name / "artifacts").mkdir(parents=True)
    remove_leftovers()
    assert {path.name for path in temporary.iterdir()} == {names["own"], names["other"]}
