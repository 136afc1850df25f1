"""From images to scores: every frame of the face tables once, in constant memory, nothing dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from masm.data.augment import to_float
from masm.data.distort import CLEAN
from masm.data.parts import Batch, Part, batches, plan
from masm.data.stored import ahead, decoded, in_order, stored_images
from masm.data.table import SCHEMA, read_failures, read_rows, read_table
from masm.detector import Detector
from masm.errors import UserError
from masm.settings import Settings

FACTS = ["dataset", "method", "video_id", "frame_index", "sample_id", "identity", "label"]
FACE_SIZE = "face_size"
"""The slice that is no column of the face tables: the longer side of the face box, px."""
TIMED = 20
"""Crops of which a latency is the median."""
ATTRIBUTES = "attributes"
"""The column of pairs, each of which can be a slice: `attributes.NAME`."""


def score(
    detector: Detector, settings: Settings, datasets: Sequence[str], progress: Callable[[int], None] = lambda n: None
) -> pd.DataFrame:
    """Score every frame of some datasets, as it is stored.

    Args:
        detector: the model; it is not changed.
        settings: where the face tables are, the batch size and the slices.
        datasets: names of datasets.
        progress: called with the number of frames that were scored since.

    Returns:
        The columns of `score_schema`, one row per frame, `score` the probability of fake before calibration. A
        video that could not be taken in is one row too, with its outcome and no score.
    """
    parts = plan(settings, datasets)
    scores = {part.name: table for part, table in score_parts(detector, settings, parts, progress)}
    return pa.concat_tables(score_rows(settings, parts, lambda part: scores[part.name])).to_pandas()


def score_parts(
    detector: Detector, settings: Settings, parts: Iterable[Part], progress: Callable[[int], None] = lambda n: None
) -> Iterator[tuple[Part, pa.Table]]:
    """Score parts one after the other; no more than a few batches are in memory.

    Yields:
        Each part with `sample_id` and `score` of its rows, in their order.

    Raises:
        UserError: a table is missing or damaged.
    """
    samples: list[str] = []
    scores: list[np.ndarray] = []
    for batch, pixels in ahead(partial(Batch.load, seed=settings.seed), batches(settings, parts)):
        samples += batch.samples
        scores.append(probabilities(detector, pixels))
        progress(len(pixels))
        if batch.last:
            yield batch.part, pa.table({"sample_id": samples, "score": np.concatenate(scores)})
            samples, scores = [], []


def score_schema(settings: Settings) -> pa.Schema:
    """Columns of Scores (see `masm.evaluation`): FACTS, `evaluate.slices`, distortion, level, score and outcome."""
    slices = [_slice_field(name) for name in settings.evaluate.slices]
    own = [("distortion", pa.string()), ("level", pa.int32()), ("score", pa.float64()), ("outcome", pa.string())]
    return pa.schema([*(SCHEMA.field(name) for name in FACTS), *slices, *(pa.field(*column) for column in own)])


def _slice_field(name: str) -> pa.Field:
    if name == FACE_SIZE:
        return pa.field(name, pa.float32())
    return pa.field(name, pa.string()) if name.startswith(ATTRIBUTES) else SCHEMA.field(name)


def score_rows(settings: Settings, parts: Iterable[Part], read: Callable[[Part], pa.Table]) -> Iterator[pa.Table]:
    """Scores of all parts: what the face tables say of their frames, beside what `read` gives of `score_parts`.

    Yields:
        The rows of a part; after a dataset's last part those of its videos that could not be taken in.

    Raises:
        UserError: a part's frames are not those that the face table has in its place.
    """
    schema = score_schema(settings)
    for dataset, own in groupby(parts, key=lambda part: part.dataset):
        for part in own:
            yield _part_rows(settings, part, read(part), schema)
        yield _failed_rows(settings, dataset, schema)


def _part_rows(settings: Settings, part: Part, scores: pa.Table, schema: pa.Schema) -> pa.Table:
    slices = settings.evaluate.slices
    read = ("bbox" if name == FACE_SIZE else name.partition(".")[0] for name in slices)
    columns = list(dict.fromkeys([*FACTS, *read]))
    rows = read_rows(part.path(settings), part.rows, columns)
    if not rows["sample_id"].equals(scores["sample_id"]):
        raise UserError(
            f"the scores of {part.name} are not of the frames that {settings.table(part.dataset)} has there: its rows "
            "must not change while they are scored; run `dvc checkout` and start again."
        )
    found = {name: rows[name] for name in columns} | {
        "distortion": pa.repeat(part.distortion, len(rows)),
        "level": pa.repeat(pa.scalar(part.level, pa.int32()), len(rows)),
        "score": scores["score"],
        "outcome": pa.repeat("ok", len(rows)),
    }
    if FACE_SIZE in slices:
        found[FACE_SIZE] = pc.max_element_wise(*(pc.list_element(rows["bbox"], side) for side in (2, 3)))
    for name in slices:
        if name.startswith(ATTRIBUTES):
            found[name] = pc.map_lookup(rows[ATTRIBUTES], pa.scalar(name.partition(".")[2]), "first")
    return pa.table([found[name] for name in schema.names], schema=schema)


def _failed_rows(settings: Settings, dataset: str, schema: pa.Schema) -> pa.Table:
    """A row for each video that gave no face; of a video that gave faces, a lost frame is none."""
    failed = read_failures(settings.table(dataset))
    failed = failed.filter(pc.is_null(failed["frame_index"]))
    videos = zip(*(failed[name].to_pylist() for name in ("dataset", "method", "video_id")), strict=True)
    count = len(failed)
    found = {name: failed[name] for name in ("dataset", "method", "video_id", "identity", "label", "outcome")} | {
        "frame_index": pa.repeat(pa.scalar(-1, pa.int32()), count),
        "sample_id": pa.array(["/".join(video) for video in videos], pa.string()),
        "distortion": pa.repeat(CLEAN, count),
        "level": pa.repeat(pa.scalar(0, pa.int32()), count),
    }
    return pa.table([found.get(field.name, pa.nulls(count, field.type)) for field in schema], schema=schema)


def subspace_shares(detector: Detector, settings: Settings, datasets: Sequence[str], frames: int) -> pd.DataFrame:
    """Mean share of each artifact subspace in the logits of a dataset's methods (see `masm.adapters.shares`).

    Args:
        detector: not merged; it is not changed.
        settings: where the face tables are, and the batch size.
        datasets: names of datasets.
        frames: how many frames of each method are looked at, evenly spaced over the table.

    Returns:
        Columns dataset, method, subspace (from 1), share (signed, positive for fake) and frames.
    """
    rows = []
    for dataset in datasets:
        table = read_table(settings.table(dataset), ["method"]).to_pandas()
        for method, members in table.groupby("method", sort=False):
            chosen = members.index[np.linspace(0, len(members) - 1, min(frames, len(members))).round().astype(int)]
            shares = _mean_shares(detector, settings, dataset, chosen.to_numpy())
            rows += [(dataset, method, index + 1, share, len(chosen)) for index, share in enumerate(shares)]
    return pd.DataFrame(rows, columns=["dataset", "method", "subspace", "share", "frames"])


def _mean_shares(detector: Detector, settings: Settings, dataset: str, rows: np.ndarray) -> list[float]:
    """Mean shares (K,) over these rows of a dataset's table."""
    images = stored_images([settings.table(dataset)]).take(rows)
    detector.eval()
    parts = [
        detector.subspace_shares(to_float(pixels).to(detector.device))
        for pixels in decoded(images, in_order(len(images), settings.evaluate.batch_size))
    ]
    return torch.cat(parts).double().mean(dim=0).tolist()


def on_device(detector: Detector) -> Detector:
    """The detector, moved to a GPU where there is one."""
    return detector.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def probabilities(detector: Detector, images: torch.Tensor) -> np.ndarray:
    """Probability of fake (n,) float64 of crops (n, 3, S, S) uint8."""
    detector.eval()
    logits = detector(to_float(images.to(detector.device)))
    return torch.sigmoid(logits.double()).cpu().numpy()


def crop_latency(detector: Detector, size: int) -> float:
    """Milliseconds of a detector for one crop of side `size`, where it is; the median of TIMED."""
    crop = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    probabilities(detector, crop)  # the first one warms up
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        probabilities(detector, crop)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))
