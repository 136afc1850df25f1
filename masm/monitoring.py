"""What `masm monitor` compares with a detector's reference: files, or tables of `masm score` and `masm embed`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from masm.detector import Detector, weights_digest
from masm.drift import Sample
from masm.embeddings import ORIGIN, read_embeddings
from masm.errors import UserError
from masm.evaluation import VIDEO
from masm.serving.files import file_task, find_media
from masm.serving.many import score_many
from masm.serving.results import OK, ImageResult, VideoResult
from masm.serving.scorer import Scorer

SCORED = ["path", "kind", "outcome", "score"]
BY = ["model", "model_sha256"]


@dataclass(frozen=True)
class Batch:
    """Frames to compare, and of how many files or videos each outcome was."""

    sample: Sample
    outcomes: Counter[str]


def observe(
    scorer: Scorer, paths: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None
) -> Batch:
    """What a model makes of some paths: Parquet files of `masm embed` or `masm score`, or images, videos and folders.

    Raises:
        UserError: they are of both kinds, a CSV file, or as `observe_files` and `read_tables` say.
    """
    if csv := [path for path in paths if path.suffix.lower() == ".csv"]:
        raise UserError(f"{csv[0]} is a CSV file: write it as Parquet, by `masm score --frames --out NAME.parquet`.")
    tables = [path.suffix.lower() == ".parquet" for path in paths]
    if any(tables) and not all(tables):
        raise UserError("some paths are Parquet files and some are not: compare them one kind at a time.")
    return read_tables(scorer, paths) if all(tables) else observe_files(scorer, paths, progress)


def observe_files(
    scorer: Scorer, paths: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None
) -> Batch:
    """Score the images and videos of some paths; of an image its largest face counts.

    Args:
        scorer: of the model.
        paths: files and folders.
        progress: called with the number of files that are done, and of all.

    Raises:
        UserError: a path is neither file nor folder, or a folder holds no image or video.
    """
    files = find_media(paths)
    scores: list[float] = []
    embeddings: list[np.ndarray] = []
    recordings: list[int] = []
    outcomes: Counter[str] = Counter()
    tasks = (file_task(scorer, file) for file in files)
    for number, result in enumerate(score_many(scorer, tasks, embeddings=True)):
        outcomes[result.outcome] += 1
        for score, embedding in _seen(result):
            scores.append(score)
            embeddings.append(embedding)
            recordings.append(number)
        progress(number + 1, len(files))
    features = np.stack(embeddings).astype(np.float64) if embeddings else None
    return Batch(Sample(np.array(scores), np.array(recordings, np.int64), features), outcomes)


def _seen(result: ImageResult | VideoResult) -> list[tuple[float, np.ndarray]]:
    """Score and embedding of each frame that decides."""
    frames = result.frames if isinstance(result, VideoResult) else result.faces[:1]
    return [(frame.score, frame.embedding) for frame in frames if frame.embedding is not None]


def read_tables(scorer: Scorer, paths: Sequence[Path]) -> Batch:
    """Read Parquet files that `masm embed` or `masm score` wrote; of each file all have the same of the two.

    Args:
        scorer: of the model that wrote them; gives the scores of embeddings.
        paths: of the files.

    Raises:
        UserError: a file is missing, of another kind or of another model, the files are of both kinds, or videos
            were scored without their frames.
    """
    digest = weights_digest(scorer.folder)
    parts = [_read_table(scorer.detector, digest, path) for path in paths]
    if len({part.sample.embeddings is None for part in parts}) > 1:
        raise UserError("some files hold embeddings and some hold scores alone: compare them one kind at a time.")
    before, recordings = 0, []
    for part in parts:
        _, numbers = np.unique(part.sample.recordings, return_inverse=True)
        recordings.append(numbers + before)
        before += numbers.max(initial=-1) + 1
    features = [part.sample.embeddings for part in parts if part.sample.embeddings is not None]
    scores = np.concatenate([part.sample.scores for part in parts])
    sample = Sample(scores, np.concatenate(recordings), np.concatenate(features) if features else None)
    return Batch(sample, sum((part.outcomes for part in parts), Counter()))


def _read_table(detector: Detector, digest: str, path: Path) -> Batch:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({error}): name another.") from None
    if ORIGIN in (schema.metadata or {}):
        origin = json.loads(schema.metadata[ORIGIN])
        _check_model(path, [(origin.get("model"), origin.get("sha256"))], digest)
        return _read_embedded(detector, path)
    if {*SCORED, *BY} <= set(schema.names):
        models = pd.read_parquet(path, columns=BY).drop_duplicates()
        _check_model(path, list(models.itertuples(index=False, name=None)), digest)
        return _read_scored(path)
    raise UserError(f"{path} was written neither by `masm score` nor by `masm embed`: name another, or write it anew.")


def _check_model(path: Path, made_by: Sequence[tuple[str | None, str | None]], digest: str) -> None:
    """Raise UserError where a model whose weights are others, by their SHA-256, had a part in a table."""
    for name, sha256 in made_by:
        if sha256 != digest:
            raise UserError(f"{path} was made by {name}, whose weights are others than this model's: name its own.")


def _read_embedded(detector: Detector, path: Path) -> Batch:
    facts, embeddings = read_embeddings(path)
    recordings = facts.groupby(VIDEO).ngroup().to_numpy()
    with torch.inference_mode():
        logits = detector.classify(torch.from_numpy(embeddings.copy()).to(detector.device))
    scores = torch.sigmoid(logits.double()).cpu().numpy()
    return Batch(Sample(scores, recordings, embeddings.astype(np.float64)), Counter({OK: len(np.unique(recordings))}))


def _read_scored(path: Path) -> Batch:
    rows = pd.read_parquet(path, columns=SCORED)
    files, frames = rows[rows["kind"] != "frame"], rows[rows["kind"] != "video"]
    videos = set(files.loc[(files["kind"] == "video") & (files["outcome"] == OK), "path"])
    if videos - set(frames["path"]):
        raise UserError(f"{path} has videos without their frames: write it with `masm score --frames`.")
    frames = frames[frames["score"].notna()]
    outcomes = Counter(files["outcome"].tolist())
    return Batch(Sample(frames["score"].to_numpy(), frames.groupby("path").ngroup().to_numpy()), outcomes)
