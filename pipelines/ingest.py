"""Stage `ingest`, once for each dataset: photographs of real faces become a face table."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress

from masm.data.ingest import ingest
from masm.errors import UserError
from masm.settings import Settings
from pipelines import run_stage


def main(settings: Settings, dataset: str) -> None:
    """Write data/ROLE/DATASET, and say what could not be taken in."""
    console = Console(stderr=True)
    with Progress(console=console) as bar:
        task = bar.add_task(f"ingest {dataset}", total=None)
        summary = ingest(settings, dataset, lambda done, total: bar.update(task, completed=done, total=total))
    console.print(f"{dataset}: {summary.videos} videos, {summary.frames} frames, {len(summary.failures)} failures")
    for failure in summary.failures:
        listed = f"  {failure['video_id']} ({failure['method']}): {failure['outcome']}: {failure['reason']}"
        console.print(listed, markup=False, highlight=False)


def dataset_argument() -> str:
    """The dataset that the command line names."""
    if len(sys.argv) != 2:
        raise UserError("which dataset? Say `python -m pipelines.ingest NAME` with a name of params.yaml's datasets.")
    return sys.argv[1]


if __name__ == "__main__":
    run_stage(lambda settings: main(settings, dataset_argument()))
