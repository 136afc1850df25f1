"""What several commands share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

ParamsOption = Annotated[Path, typer.Option("--params", help="The workspace's params.yaml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def activate() -> None:
    """The stages say `python`: let that be this one, whether or not its environment is activated."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
