"""From photographs of real faces to rows of a face table: expose, forge, compress, crop.

Reals and fakes go the same way but for the forging, so that the forgery is all that tells them apart: one
camera takes both, one quality compresses both, one square cuts both.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from masm.data.camera import CAMERAS, Camera, compress, decompress, expose
from masm.data.faces import CropProfile, Face, crop, draw_jitter
from masm.data.forge import FORGERIES, NEEDS_LANDMARKS, Forgery, forge
from masm.data.importers.drawn import drawn_photographs
from masm.data.importers.folder import folder_photographs
from masm.data.importers.photograph import Photograph, Unusable
from masm.data.people import Place, divide_people
from masm.data.profile import crop_profile
from masm.data.rows import Outcome, encode, image_columns, landmark_columns
from masm.errors import UserError
from masm.settings import ForgedDataset, Settings

FAMILIES = {
    "swap": "face swap",
    "reenact": "reenactment",
    "selfblend": "blend",
    "upsample": "synthesis",
    "denoise": "synthesis",
}


@dataclass(frozen=True)
class Recipe:
    """What makes a dataset from photographs; the same for each of them."""

    seed: int
    dataset: str
    camera: Camera
    forgeries: tuple[str, ...]
    profile: CropProfile
    frames: int


@dataclass(frozen=True)
class Task:
    """One photograph, its place, and the photograph that gives its face to a swap."""

    recipe: Recipe
    photograph: Photograph
    place: Place
    donor: Photograph

    def run(self) -> Outcome:
        """All frames of the photograph: the real ones, and those of each forgery.

        Each video that could not be made is a failure: all of them where the photograph is unusable, the swap
        alone where its donor is.
        """
        recipe = self.recipe
        try:
            face = _exposed(recipe, self.photograph)
        except Unusable as error:
            return Outcome([], [_failure(self, method, error) for method in ("real", *recipe.forgeries)])
        outcome = Outcome(list(_frames(self, face, None, "real")), [])
        for method in recipe.forgeries:
            try:
                donor = _exposed(recipe, self.donor) if method == "swap" else None
            except Unusable as error:
                outcome.failures.append(_failure(self, method, error))
                continue
            rng = _generator(recipe.seed, recipe.dataset, face.photograph, method)
            outcome.rows.extend(_frames(self, face, forge(method, face, rng, donor), method))
        return outcome


def make_recipe(settings: Settings, dataset: str) -> Recipe:
    """The recipe of a dataset, checked against what there is.

    Raises:
        UserError: an unknown camera or forgery, or a forgery that needs landmarks from a face detector that
            gives none.
    """
    chosen = settings.datasets[dataset]
    assert isinstance(chosen, ForgedDataset)
    where = f"datasets.{dataset}"
    if chosen.camera not in CAMERAS:
        raise UserError(f"{where}.camera: there is no camera {chosen.camera!r}: use {', '.join(CAMERAS)}.")
    if unknown := [name for name in chosen.forgeries if name not in FORGERIES]:
        raise UserError(f"{where}.forgeries: there is no {unknown[0]!r}: use {', '.join(FORGERIES)}.")
    profile = crop_profile(settings)
    without = [name for name in chosen.forgeries if name in NEEDS_LANDMARKS]
    if profile.detector == "cascade" and without:
        raise UserError(
            f"{where}.forgeries: {without[0]!r} needs landmarks, which the cascade does not give: set crop.detector "
            f"to yunet, or use {', '.join(sorted(set(FORGERIES) - NEEDS_LANDMARKS))}."
        )
    return Recipe(settings.seed, dataset, CAMERAS[chosen.camera], chosen.forgeries, profile, settings.crop.frames)


def make_tasks(settings: Settings, dataset: str) -> list[Task]:
    """The photographs of the people who have the dataset's role, each with a donor from the same place."""
    recipe = make_recipe(settings, dataset)
    photographs = _photographs(settings)
    places = divide_people((photo.identity for photo in photographs), settings.faces, settings.seed)
    role = settings.datasets[dataset].role
    chosen = [photo for photo in photographs if places[photo.identity].role == role]
    tasks = []
    for photo in chosen:
        place = places[photo.identity]
        others = [other for other in chosen if other.identity != photo.identity and places[other.identity] == place]
        donor = others[_generator(settings.seed, dataset, photo.name, "donor").integers(len(others))]
        tasks.append(Task(recipe, photo, place, donor))
    return tasks


def _photographs(settings: Settings) -> Sequence[Photograph]:
    """All photographs of the source that params.yaml names, sorted by name."""
    return drawn_photographs(settings) if settings.faces.source == "drawn" else folder_photographs(settings)


def _exposed(recipe: Recipe, photograph: Photograph) -> Face:
    """The face as the dataset's camera takes it: the noise comes before any forgery."""
    face = photograph.face()
    rng = _generator(recipe.seed, recipe.dataset, photograph.name, "camera")
    return replace(face, image=expose(face.image, recipe.camera, rng))


def _failure(task: Task, method: str, error: Unusable) -> dict[str, Any]:
    return {
        "dataset": task.recipe.dataset,
        "split": task.place.split,
        "label": int(method != "real"),
        "method": method,
        "video_id": task.photograph.name,
        "frame_index": None,
        "identity": task.photograph.identity,
        "outcome": error.outcome,
        "reason": error.reason,
    }


def _frames(task: Task, face: Face, forgery: Forgery | None, method: str) -> Iterator[dict[str, Any]]:
    """The jittered crops of one photograph; quality and jitter are those of the real, whatever the method."""
    recipe = task.recipe
    rng = _generator(recipe.seed, recipe.dataset, face.photograph, "quality")
    quality = int(rng.integers(recipe.camera.quality[0], recipe.camera.quality[1] + 1))
    published = decompress(compress(face.image if forgery is None else forgery.image, quality))
    sources = [face.photograph] if method != "swap" else [face.photograph, task.donor.name]
    for index in range(recipe.frames):
        jitter = draw_jitter(rng)
        image = crop(published, face.box, recipe.profile, jitter, face.landmarks)
        yield {
            "sample_id": f"{recipe.dataset}/{method}/{face.photograph}/{index}",
            "dataset": recipe.dataset,
            "split": task.place.split,
            "label": int(forgery is not None),
            "method": method,
            "family": "real" if forgery is None else FAMILIES[method],
            "video_id": face.photograph,
            "frame_index": index,
            "track_id": 0,
            "sources": sources,
            "source_clip": face.photograph,
            "identity": face.identity,
            "compression": f"jpeg-{quality}",
            "bbox": face.box.tolist(),
            **landmark_columns(face.box, recipe.profile, jitter, face.landmarks),
            "mask": None
            if forgery is None
            else encode(crop(forgery.mask, face.box, recipe.profile, jitter, face.landmarks)),
            "forge_parameters": None if forgery is None else json.dumps(forgery.parameters, sort_keys=True),
            "attributes": [("camera", recipe.camera.name)],
            **image_columns(image, recipe.profile),
        }


def _generator(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each dataset, photograph and purpose."""
    return np.random.default_rng((seed, *(zlib.crc32(name.encode()) for name in names)))
