"""Scoring of the test datasets for the stage `evaluate`: in the stage itself, or shared out over Ray's workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from masm.console import Progress
from masm.data.parts import Part, plan
from masm.data.table import table_shards
from masm.data.versions import fetch_missing, folder_md5, work_name
from masm.detector import Detector
from masm.scorecard import ADAPTED
from masm.scores import Work, write_scores
from masm.scoring import on_device, score_parts
from masm.settings import Settings

Job = tuple[str, Part]
"""A model's name, and what it is to score."""


def score_models(
    settings: Settings, detectors: Mapping[str, Detector], folders: Mapping[str, Path], path: Path
) -> None:
    """Write the scores of some models on the test datasets; where a former attempt was killed, only what it lacks.

    Args:
        settings: all of params.yaml.
        detectors: by the models' names; they are moved to a GPU where there is one.
        folders: that they were read from: their bytes tell one work in progress from another.
        path: of the file, see `masm.scores.write_scores`.
    """
    tests = settings.with_role("test")
    plans = {name: plan(settings, tests, distorted=name == ADAPTED) for name in detectors}
    work = Work(settings.root / "data" / "work" / ".scores" / _name(settings, folders))
    jobs = [(name, part) for name, parts in plans.items() for part in work.missing(name, parts)]
    with Progress() as bar:
        tasks = {name: bar.add_task(f"score, {name}", total=_frames(parts)) for name, parts in plans.items()}
        for name, parts in plans.items():
            bar.advance(tasks[name], _frames(parts) - _frames(part for model, part in jobs if model == name))
        score_jobs = _score_here if settings.evaluate.workers == 1 else _score_on_cluster
        for (name, part), scores in score_jobs(settings, detectors, jobs, lambda name, n: bar.advance(tasks[name], n)):
            work.keep(name, part, scores)
    write_scores(path, settings, plans, work)
    shutil.rmtree(work.folder.parent)


def _name(settings: Settings, folders: Mapping[str, Path]) -> str:
    """The name of the work in progress: other models, frames or rules have another."""
    shards = [path.stat() for name in settings.with_role("test") for path in table_shards(settings.table(name))]
    return work_name(
        "evaluate",
        settings,
        settings.evaluate.batch_size,
        settings.evaluate.robustness,
        settings.with_role("test"),
        [(shard.st_size, shard.st_mtime_ns) for shard in shards],  # dvc.lock does not know of changes by hand
        {name: folder_md5(folder) for name, folder in folders.items()},
    )


def _frames(parts: Iterable[Part]) -> int:
    return sum(len(part.rows) for part in parts)


def _score_here(
    settings: Settings, detectors: Mapping[str, Detector], jobs: Sequence[Job], progress: Callable[[str, int], None]
) -> Iterator[tuple[Job, pa.Table]]:
    """Score jobs by this process, model by model; progress is told a model and the frames that it scored since."""
    for name, own in groupby(jobs, key=lambda job: job[0]):
        parts = (part for _, part in own)
        for part, scores in score_parts(on_device(detectors[name]), settings, parts, partial(progress, name)):
            yield (name, part), scores


def _score_on_cluster(
    settings: Settings, detectors: Mapping[str, Detector], jobs: Sequence[Job], progress: Callable[[str, int], None]
) -> Iterator[tuple[Job, pa.Table]]:
    """Score jobs by `evaluate.workers` of Ray's workers, in any order."""
    from masm.cluster import connected  # Ray's import takes longer than a small dataset
    from masm.parallel import run_on_actors

    run, workers = partial(score_remotely, settings), settings.evaluate.workers
    with connected(settings.ray, workers):
        for (name, part), scores in run_on_actors(run, detectors, jobs, workers):
            progress(name, len(part.rows))
            yield (name, part), scores


def score_remotely(settings: Settings, detectors: Mapping[str, Detector], job: Job) -> pa.Table:
    """Score a part on a node of the cluster, which fetches the face tables if it lacks them."""
    name, part = job
    fetch_missing(settings.root, [f"ingest@{part.dataset}"])
    ((_, scores),) = score_parts(on_device(detectors[name]), settings, [part])
    return scores
