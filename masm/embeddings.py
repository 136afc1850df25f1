"""Embeddings of the frames of face tables: made in constant memory, kept as Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from masm import __version__
from masm.data.augment import to_float
from masm.data.faces import CropProfile
from masm.data.stored import StoredImages, decoded, in_order, stored_images
from masm.data.table import SCHEMA, read_table
from masm.data.versions import digests
from masm.detector import Detector, weights_digest
from masm.errors import UserError
from masm.evaluation import VIDEO
from masm.scoring import FACTS
from masm.settings import Settings

COLUMNS = [*FACTS, "split"]
ROW_GROUP = 4096
"""Frames whose embeddings are held at once."""
ORIGIN = b"masm"
"""The key of the file's metadata under which is said, as JSON, where the embeddings come from."""


def every_frame(settings: Settings, datasets: Sequence[str]) -> dict[str, np.ndarray]:
    """All rows of the face tables of some datasets, by dataset.

    Raises:
        UserError: there is no such dataset, or it has no face table.
    """
    if unknown := [name for name in datasets if name not in settings.datasets]:
        raise UserError(
            f"there is no dataset {unknown[0]!r} in {settings.root / 'params.yaml'}: it has "
            f"{', '.join(settings.datasets)}."
        )
    return {name: np.arange(len(read_table(settings.table(name), ["label"]))) for name in datasets}


def spread_frames(settings: Settings, datasets: Sequence[str], frames: int) -> dict[str, np.ndarray]:
    """Rows of at most `frames` frames of each method of some datasets, drawn with `settings.seed`.

    Every video of a method gives one frame before any gives a second one, and so on.
    """
    return {name: _spread(read_table(settings.table(name), VIDEO), frames, settings.seed) for name in datasets}


def _spread(videos: pa.Table, frames: int, seed: int) -> np.ndarray:
    """Rows in rising order, of a table with the VIDEO columns."""
    shuffled = videos.to_pandas().sample(frac=1, random_state=seed)
    turn = shuffled.groupby(VIDEO).cumcount().sort_values(kind="stable")  # of a frame among those of its video
    chosen = shuffled.loc[turn.index].groupby("method").head(frames)
    return np.sort(chosen.index.to_numpy())


def write_embeddings(
    path: Path,
    detector: Detector,
    settings: Settings,
    frames: Mapping[str, np.ndarray],
    origin: Mapping[str, Any],
    progress: Callable[[int], None] = lambda n: None,
) -> None:
    """Write the embeddings of frames as Parquet; the file appears under its name only when it is whole.

    Each row has the COLUMNS of the face table and `embedding`, D values float32: the pooled features of
    `Detector.embed`. Losses and figures take them at length 1, which is left to the reader of the file.

    Args:
        path: replaced if it is there.
        detector: the model, best with merged weights; it is not changed.
        settings: where the face tables are, and the batch size.
        frames: rows of the face table by dataset, as `every_frame` and `spread_frames` give them.
        origin: JSON values for the file's metadata, see `origin_of`.
        progress: called with the number of frames that were embedded since.

    Raises:
        UserError: a table is missing or damaged, was cut out otherwise than the detector's training data, a frame
            has an embedding that is not finite, or the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, detector, settings, frames, origin, progress)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): name another place.") from None


def _write(
    path: Path,
    detector: Detector,
    settings: Settings,
    frames: Mapping[str, np.ndarray],
    origin: Mapping[str, Any],
    progress: Callable[[int], None],
) -> None:
    """As `write_embeddings`, straight to the file."""
    width = pa.list_(pa.float32(), detector.head.in_features)
    fields = [*(SCHEMA.field(name) for name in COLUMNS), pa.field("embedding", width)]
    schema = pa.schema(fields, metadata={ORIGIN: json.dumps(origin)})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=COLUMNS) as writer:
        for dataset, rows in frames.items():
            table = settings.table(dataset)
            _check_crops(detector, table)
            facts, images = read_table(table, COLUMNS), stored_images([table])
            for part in in_order(len(rows), ROW_GROUP):
                chosen = rows[part]
                features = _embed(detector, images.take(chosen), settings.evaluate.batch_size, progress)
                _check_finite(features, dataset)
                column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), type=width)
                columns = [*facts.take(pa.array(chosen)).columns, column]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


@torch.inference_mode()
def _embed(detector: Detector, images: StoredImages, batch_size: int, progress: Callable[[int], None]) -> np.ndarray:
    """Pooled features (n, D) float32 of the images, in their order."""
    detector.eval()
    parts = []
    for pixels in decoded(images, in_order(len(images), batch_size)):
        parts.append(detector.embed(to_float(pixels.to(detector.device))).float().cpu())
        progress(len(pixels))
    return torch.cat(parts).numpy()


def _check_crops(detector: Detector, table: Path) -> None:
    """Raise UserError where the table's crops are none of those that the detector was trained for."""
    if "crop" not in detector.card:
        return  # saved by hand, without a word on crops
    expected = CropProfile(**detector.card["crop"]).hash
    if other := set(map(str, read_table(table, ["profile"])["profile"].unique().to_pylist())) - {expected}:
        raise UserError(
            f"{table} has crop profile {min(other)}, the detector was trained for {expected}: ingest the dataset with "
            "the `crop` of the detector's detector.json."
        )


def _check_finite(features: np.ndarray, dataset: str) -> None:
    if bad := int((~np.isfinite(features)).any(axis=1).sum()):
        raise UserError(f"{bad} frames of {dataset} have an embedding that is not finite: did training diverge?")


def read_embeddings(path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """The COLUMNS of the frames, and their embeddings (n, D) float32, from a file of `write_embeddings`.

    Raises:
        UserError: the file is missing, or no such file.
    """
    check_embeddings_file(path)
    table = pq.read_table(path)
    embeddings = table["embedding"].combine_chunks()
    values = embeddings.flatten().to_numpy().reshape(len(table), embeddings.type.list_size)
    return table.select(COLUMNS).to_pandas(), values


def check_embeddings_file(path: Path) -> None:
    """Raise UserError where the file is none that `write_embeddings` wrote."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file that can be read ({error}): name another.") from None
    if ORIGIN not in metadata:
        raise UserError(f"{path} is a Parquet file, but none of embeddings: name another.")


def origin_of(settings: Settings, datasets: Sequence[str], model: str, folder: Path) -> dict[str, Any]:
    """Where embeddings come from: the model's name and the SHA-256 of its weights, the MD5 of each face table, masm.

    Args:
        settings: of the workspace.
        datasets: whose frames are embedded.
        model: what the model is called.
        folder: its detector folder.

    Raises:
        UserError: a dataset has not been ingested by DVC.
    """
    asked = settings.model_copy(update={"datasets": {name: settings.datasets[name] for name in datasets}})
    return {"model": model, "sha256": weights_digest(folder), "data": digests(asked), "masm": __version__}
