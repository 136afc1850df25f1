"""Fixtures that the whole suite shares."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker, as they share its fixtures, and all of Ray's: memory has room for one."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and model files beside the project; a test that needs it skips without."""
    folder = ROOT.parent / "shared"
    if not (folder / "faces" / "london").is_dir():
        pytest.skip("needs the photographs of ../shared, which is not beside this checkout")
    return folder
