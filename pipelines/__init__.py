"""The stages: thin files over the library, run by DVC and as entry points of Ray jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from masm.console import exit_codes
from masm.settings import Settings, load_settings
from masm.timings import measured


def run_stage(main: Callable[[Settings], None]) -> None:
    """Run a stage on ./params.yaml, and keep what it cost in timings/STAGE.json."""
    with exit_codes():
        settings = load_settings()
        with measured(settings.root / "timings" / f"{stage_name()}.json"):
            main(settings)


def stage_name() -> str:
    """The running module's, with its arguments as DVC writes them: ingest@swap."""
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else sys.argv[0]
    return "@".join([module.rpartition(".")[2], *sys.argv[1:]])
