"""`masm submit`: a stage on a Ray cluster."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masm.cli.shared import ParamsOption
from masm.console import STDERR
from masm.errors import UserError
from masm.settings import job_server, load_settings

if TYPE_CHECKING:
    from masm.jobs import Submitted

app = typer.Typer()

LINK = re.compile(r"https?://\S+/#/experiments/\d+/runs/\w+")
INTERRUPTED = 130


@app.command()
def submit(
    stage: Annotated[str, typer.Argument(help="search or train.")] = "",
    address: Annotated[str | None, typer.Option(help="The cluster's job server, http://HOST:8265.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
    install: Annotated[bool, typer.Option("--install", help="Install requirements.lock on every node first.")] = False,
    follow: Annotated[str | None, typer.Option(metavar="ID", help="Show the log of a job that was submitted.")] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Run a stage on a Ray cluster, and show its log; Ctrl-C leaves it running."""
    from masm import jobs

    logging.disable(logging.INFO)  # Ray's words about packages and connections
    if bool(stage) == bool(follow):
        raise UserError("masm submit wants a STAGE, or --follow ID of a job that runs already: give one of them.")
    if follow and detach:
        raise UserError("masm submit --follow shows a log, --detach shows none: give one of them.")
    if params.name != "params.yaml":
        raise UserError(f"--params {params}: the stages read params.yaml: give the path of one.")
    settings = load_settings(params)
    if follow is None:
        job = jobs.submit(settings, stage, address, install, _say)
        _say(f"job {job.number}; {job.how}")
    else:
        job = jobs.Submitted(follow, jobs.connect(address or job_server(settings.ray)).get_address())
    if not detach:
        raise typer.Exit(_followed(job))


def _followed(job: Submitted) -> int:
    """Show a job's log, and what came of it; the exit code."""
    from masm import jobs

    links: dict[str, None] = {}

    def show(text: str) -> None:
        links.update(dict.fromkeys(LINK.findall(text)))
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        ended = jobs.follow(job, show)
    except KeyboardInterrupt:
        _say(f"the job {job.number} goes on; {job.how}")
        return INTERRUPTED
    for link in links:
        _say(f"MLflow run: {link}")
    if ended.exit_code:
        _say(f"the job {job.number} {ended.status} (exit code {ended.exit_code}) {ended.why}".rstrip())
    elif ended.stage:
        _say(f"the job {job.number} {ended.status}; in {ended.workspace} `dvc repro {ended.stage}` takes its result")
    else:  # of Ray's own command, or another program's
        _say(f"the job {job.number} {ended.status}")
    return ended.exit_code


def _say(line: str) -> None:
    STDERR.print(line, markup=False, highlight=False, soft_wrap=True)
