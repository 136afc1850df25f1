"""From the index of an imported dataset to rows of a face table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masm.data.extract import FaceFrame, extract
from masm.data.faces import CropProfile
from masm.data.importers.photograph import Unusable
from masm.data.index import IndexedClip, count_splits, index_digest, read_index
from masm.data.profile import crop_profile, detector_weights
from masm.data.rows import Outcome, encode, image_columns, landmark_columns
from masm.errors import UserError
from masm.settings import ROLE_SPLITS, ImportedDataset, Settings


@dataclass(frozen=True)
class Task:
    """One clip of the index.

    Attributes:
        dataset: its name.
        split: in the face table.
        indexed: the clip.
        profile, weights: how faces are found and cut out.
    """

    dataset: str
    split: str
    indexed: IndexedClip
    profile: CropProfile
    weights: Path | None

    def run(self) -> Outcome:
        """The crops of the clip's face.

        Raises:
            UserError: a file is no longer what was imported.
        """
        clip = self.indexed.clip
        if (changed := self.indexed.changed()) is not None:
            raise UserError(f"{changed} is not as it was when it was imported: run `masm data import` again.")
        if not clip.files:
            return Outcome([], [self._failure(None, "unreadable", "the layout names no files of it")])
        try:
            found = extract(clip.files, clip.masks, self.profile, self.weights)
        except Unusable as error:
            return Outcome([], [self._failure(None, error.outcome, error.reason)])
        failures = [self._failure(frame.frame_index, frame.outcome, frame.reason) for frame in found.failures]
        return Outcome([self._row(frame) for frame in found.frames], failures)

    def _failure(self, frame_index: int | None, outcome: str, reason: str) -> dict[str, Any]:
        clip = self.indexed.clip
        return {
            "dataset": self.dataset,
            "split": self.split,
            "label": clip.label,
            "method": clip.method,
            "video_id": clip.video_id,
            "frame_index": frame_index,
            "identity": self._identity(),
            "outcome": outcome,
            "reason": reason,
        }

    def _row(self, frame: FaceFrame) -> dict[str, Any]:
        clip = self.indexed.clip
        return {
            "sample_id": f"{self.dataset}/{clip.method}/{clip.video_id}/{frame.frame_index}",
            "dataset": self.dataset,
            "split": self.split,
            "label": clip.label,
            "method": clip.method,
            "family": clip.family,
            "video_id": clip.video_id,
            "frame_index": frame.frame_index,
            "track_id": frame.track_id,
            "sources": list(clip.sources),
            "source_clip": clip.source_clip,
            "identity": self._identity(),
            "compression": clip.compression,
            "bbox": frame.box.tolist(),
            **landmark_columns(frame.box, self.profile, None, frame.landmarks),
            "mask": None if frame.mask is None else encode(frame.mask),
            "forge_parameters": None,
            "attributes": list(clip.attributes),
            **image_columns(frame.image, self.profile),
        }

    def _identity(self) -> str:
        """The person; where nobody says who it is, the recording stands for the person in it."""
        return self.indexed.clip.identity or self.indexed.clip.source_clip


def make_tasks(settings: Settings, dataset: str) -> Iterator[Task]:
    """The clips that the dataset takes, a few in memory at once.

    Raises:
        UserError: the index is missing, damaged, or not the one that params.yaml speaks of.
    """
    chosen = _imported(settings, dataset)
    path = settings.path(chosen.index)
    if index_digest(path) != chosen.digest:
        raise UserError(f"{path} is not the index that datasets.{dataset}.digest names: run `masm data import` again.")
    profile, weights = crop_profile(settings), detector_weights(settings)
    for indexed in read_index(path, chosen.splits):
        split = indexed.clip.split if chosen.role == "train" else ROLE_SPLITS[chosen.role][0]
        yield Task(dataset, split, indexed, profile, weights)


def count_tasks(settings: Settings, dataset: str) -> int:
    """How many clips the dataset takes."""
    chosen = _imported(settings, dataset)
    counts = count_splits(settings.path(chosen.index))
    return sum(counts.get(split, 0) for split in chosen.splits)


def _imported(settings: Settings, dataset: str) -> ImportedDataset:
    chosen = settings.datasets[dataset]
    assert isinstance(chosen, ImportedDataset)
    return chosen
