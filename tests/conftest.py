"""Fixtures that the whole suite shares."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# On a machine that others use, too, an example may take any time; and what fails once fails again.
settings.register_profile("masm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("masm")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and model files beside the project; a test that needs it skips without."""
    folder = ROOT.parent / "shared"
    if not (folder / "faces" / "london").is_dir():
        pytest.skip("needs the photographs of ../shared, which is not beside this checkout")
    return folder
