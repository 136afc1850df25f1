"""Scoring of the test datasets for the stage `evaluate`: in the stage itself, or shared out over Ray's workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow as pa
from rich.console import Console
from rich.progress import Progress

from masm.data.parts import Part, plan
from masm.data.table import table_shards
from masm.data.versions import fetch_missing, folder_md5, work_name
from masm.detector import Detector
from masm.scorecard import ADAPTED
from masm.scores import Work, write_scores
from masm.scoring import on_device, score_parts
from masm.settings import Settings

Scorer = Callable[[Detector, Sequence[Part], Callable[[int], None]], Iterator[tuple[Part, pa.Table]]]
"""Scores parts as `masm.scoring.score_parts` does, in any order."""


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
    with _scorer(settings) as scorer, Progress(console=Console(stderr=True)) as bar:
        for name, detector in detectors.items():
            missing = work.missing(name, plans[name])
            frames = sum(len(part.rows) for part in plans[name])
            task = bar.add_task(f"score, {name}", total=frames)
            bar.advance(task, frames - sum(len(part.rows) for part in missing))
            for part, scores in scorer(detector, missing, partial(bar.advance, task)):
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


@contextmanager
def _scorer(settings: Settings) -> Iterator[Scorer]:
    """What scores parts: this process, or `evaluate.workers` of Ray's."""
    if settings.evaluate.workers == 1:
        yield partial(_score_here, settings)
        return
    from masm.cluster import connected  # Ray's import takes longer than the scoring of a small dataset

    with connected(settings.ray, settings.evaluate.workers):
        yield partial(_score_on_cluster, settings)


def _score_here(
    settings: Settings, detector: Detector, parts: Sequence[Part], progress: Callable[[int], None]
) -> Iterator[tuple[Part, pa.Table]]:
    return score_parts(on_device(detector), settings, parts, progress)


def _score_on_cluster(
    settings: Settings, detector: Detector, parts: Sequence[Part], progress: Callable[[int], None]
) -> Iterator[tuple[Part, pa.Table]]:
    from masm.cluster import run_on_actors

    run = partial(score_remotely, settings)
    for part, scores in run_on_actors(run, detector, parts, settings.evaluate.workers):
        progress(len(part.rows))
        yield part, scores


def score_remotely(settings: Settings, detector: Detector, part: Part) -> pa.Table:
    """Score a part on a node of the cluster, which fetches the face tables if it lacks them."""
    fetch_missing(settings.root, [f"ingest@{part.dataset}"])
    ((_, scores),) = score_parts(on_device(detector), settings, [part])
    return scores
