"""Handing a dataset on in the layout of DeepfakeBench."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from masm.data.images import IMAGE_SUFFIXES
from masm.data.importers.deepfakebench import manifest
from masm.data.index import Clip, index_root, read_index
from masm.data.table import table_shards
from masm.errors import UserError
from masm.settings import Dataset, ImportedDataset, Settings

FACTS = ["video_id", "split", "label", "method", "family", "identity", "source_clip", "compression"]
COLUMNS = [*FACTS, "sources", "frame_index", "image", "mask"]


@dataclass(frozen=True)
class Exported:
    """The manifest that was written, and the folder at which its paths begin."""

    manifest: Path
    root: Path


def export_manifest(settings: Settings, dataset: str, path: Path) -> Exported:
    """Write the manifest of an imported dataset, over the files that it was imported from.

    A dataset that came from such a manifest gives the same one, with frames in their order and / as separator, but for
    what the import changed: other compressions and what a strict split excluded are left out, val may be held out.

    Raises:
        UserError: the dataset is none that was imported, or it was from videos.
    """
    chosen = _chosen(settings, dataset)
    if not isinstance(chosen, ImportedDataset):
        raise UserError(f"datasets.{dataset} was not imported: give a folder, into which its crops are written.")
    index = settings.path(chosen.index)
    clips = [indexed.clip for indexed in read_index(index)]
    if any(file.suffix.lower() not in IMAGE_SUFFIXES for clip in clips for file in clip.files[:1]):
        raise UserError(
            f"datasets.{dataset} was imported from videos: give a folder, into which its crops are written."
        )
    root = index_root(index)
    _write(path, manifest(clips, dataset, root))
    return Exported(path, root)


def export_crops(settings: Settings, dataset: str, folder: Path) -> Exported:
    """Write the crops of a face table as PNG files, and their manifest.

    FOLDER/DATASET appears only when it is whole.

    Raises:
        UserError: there is no such dataset, no table of it, FOLDER/DATASET is there already, or two videos would get
            one folder.
    """
    _chosen(settings, dataset)
    place = folder / dataset
    if place.exists():
        raise UserError(f"there is something at {place} already: move it away, or export into another folder.")
    clips: dict[tuple[str, str], Clip] = {}
    partial = place.with_name(f".{dataset}.partial-{os.getpid()}")
    try:
        for row in _rows(settings.table(dataset)):
            parts = (_file_name(row["method"]), _file_name(row["video_id"]))
            clip = clips.get(parts) or _clip(row)
            if (clip.method, clip.video_id) != (row["method"], row["video_id"]):
                raise UserError(
                    f"the videos {clip.method}/{clip.video_id} and {row['method']}/{row['video_id']} of "
                    f"datasets.{dataset} would both be {'/'.join(parts)}: rename one, and import them again."
                )
            name = f"{row['frame_index']:03d}.png"
            frame, mask = (Path(parts[0], kind, parts[1], name) for kind in ("frames", "masks"))
            _store(partial / frame, row["image"])
            clip = replace(clip, files=(*clip.files, place / frame))
            if row["mask"] is not None:
                _store(partial / mask, row["mask"])
                clip = replace(clip, masks=(*clip.masks, place / mask))
            clips[parts] = clip
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    path = folder / f"{dataset}.json"
    _write(path, manifest(clips.values(), dataset, folder))
    return Exported(path, folder)


def _chosen(settings: Settings, dataset: str) -> Dataset:
    if dataset not in settings.datasets:
        raise UserError(f"params.yaml has no dataset {dataset!r}: it has {', '.join(settings.datasets)}.")
    return settings.datasets[dataset]


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    for shard in table_shards(table):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(64, columns=COLUMNS):
                yield from batch.to_pylist()


def _clip(row: dict[str, Any]) -> Clip:
    """The video of a row, without its files."""
    return Clip(**{name: row[name] for name in FACTS}, sources=tuple(row["sources"]), files=())


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _file_name(text: str) -> str:
    """A name that is one folder, whatever stood in a manifest."""
    return re.sub(r"[^\w.+-]", "-", text).lstrip(".")


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(json.dumps(tree, indent=1) + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
