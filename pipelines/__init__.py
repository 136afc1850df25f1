"""The stages: thin files over the library, run by DVC and as entry points of Ray jobs."""

from __future__ import annotations

from collections.abc import Callable

from masm.console import exit_codes
from masm.settings import Settings, load_settings


def run_stage(main: Callable[[Settings], None]) -> None:
    """Run a stage on ./params.yaml."""
    with exit_codes():
        main(load_settings())
