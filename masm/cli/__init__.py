"""The `masm` command: a module for each group of commands; each command is thin over the library."""

from __future__ import annotations

import typer

from masm.cli import backbone, data, jobs, models, pipeline, registry
from masm.console import exit_codes

app = typer.Typer(help="Train, search, compare, promote and serve face-forgery detectors.", no_args_is_help=True)
app.add_typer(pipeline.app)
app.add_typer(jobs.app)
app.add_typer(models.app)
app.add_typer(registry.app, name="registry")
app.add_typer(data.app, name="data")
app.add_typer(backbone.app, name="backbone")


def main() -> None:
    """Run the command; mistakes end with one message and their exit code."""
    with exit_codes():
        app()
