"""Stage `ingest`, once for each dataset: photographs of real faces, or imported videos, become a face table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from masm.console import STDERR, Progress
from masm.data.ingest import Jobs, ingest, outcome_of, run_in_processes, write_part
from masm.errors import UserError
from masm.settings import Settings
from pipelines import run_stage

LISTED = 20
"""Failures that are printed; all of them are in the table."""


def main(settings: Settings, dataset: str) -> None:
    """Write data/ROLE/DATASET, and say what could not be taken in."""
    with Progress() as bar:
        task = bar.add_task(f"ingest {dataset}", total=None)
        with _workers(settings) as run_jobs:
            summary = ingest(
                settings, dataset, lambda done, total: bar.update(task, completed=done, total=total), run_jobs
            )
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in summary.outcomes.items())
    lost = len(summary.failures) + summary.outcomes["ok"] - sum(summary.outcomes.values())
    STDERR.print(f"{dataset}: videos: {outcomes}; {summary.frames} frames, {lost} frames lost")
    for failure in summary.failures[:LISTED]:
        place = "" if failure["frame_index"] is None else f", frame {failure['frame_index']}"
        listed = f"  {failure['video_id']} ({failure['method']}{place}): {failure['outcome']}: {failure['reason']}"
        STDERR.print(listed, markup=False, highlight=False, soft_wrap=True)
    if len(summary.failures) > LISTED:
        STDERR.print(f"  and {len(summary.failures) - LISTED} more in {settings.table(dataset) / 'failures.parquet'}")


@contextmanager
def _workers(settings: Settings) -> Iterator[Callable[[Jobs], Iterator[None]]]:
    """The cluster of params.yaml, or processes of this machine."""
    if settings.ray.address is None:
        yield run_in_processes
        return
    from masm.cluster import connected  # Ray's import takes longer than the ingest of a small dataset

    with connected(settings.ray, cpus=1):
        yield run_on_cluster


def run_on_cluster(jobs: Jobs) -> Iterator[None]:
    """Run tasks on the connected cluster, whose nodes open the raw files at the same paths; parts are written here."""
    from masm.parallel import run_remotely

    for (_, part), outcome in run_remotely(outcome_of, jobs):
        write_part(part, outcome)
        yield


def dataset_argument() -> str:
    """The dataset that the command line names."""
    if len(sys.argv) != 2:
        raise UserError("which dataset? Say `python -m pipelines.ingest NAME` with a name of params.yaml's datasets.")
    return sys.argv[1]


if __name__ == "__main__":
    run_stage(lambda settings: main(settings, dataset_argument()))
