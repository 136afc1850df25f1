"""From photographs of real faces to a face table: expose, forge, compress, crop.

Reals and fakes go the same way but for the forging, so that the forgery is all that tells them apart: one
camera takes both, one quality compresses both, one square cuts both.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from masm.data.camera import CAMERAS, Camera, compress, decompress, expose
from masm.data.faces import CropProfile, Face, crop, draw_jitter
from masm.data.forge import FORGERIES, NEEDS_LANDMARKS, Forgery, forge
from masm.data.importers import Photograph, photographs_of
from masm.data.importers.photograph import Unusable
from masm.data.people import Place, divide_people
from masm.data.profile import crop_profile
from masm.data.table import SCHEMA_VERSION, perceptual_hash, sha256, write_table
from masm.errors import UserError
from masm.settings import Settings

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

    photograph: Photograph
    place: Place
    donor: Photograph


@dataclass(frozen=True)
class Outcome:
    """What became of a photograph: rows of the face table, and of its failures."""

    rows: list[dict[str, Any]]
    failures: list[dict[str, Any]]


@dataclass(frozen=True)
class Summary:
    """What an ingest did, for the person who started it."""

    videos: int
    frames: int
    failures: list[dict[str, Any]]


def ingest(settings: Settings, dataset: str, progress: Callable[[int, int], None]) -> Summary:
    """Write the face table of one dataset.

    Args:
        settings: all of params.yaml.
        dataset: a name of its `datasets` section.
        progress: called with photographs done and photographs in all.

    Raises:
        UserError: the dataset is unknown, or its settings do not fit together.
    """
    recipe = make_recipe(settings, dataset)
    tasks = make_tasks(settings, dataset)
    outcomes = []
    for outcome in _in_parallel(recipe, tasks):
        outcomes.append(outcome)
        progress(len(outcomes), len(tasks))
    rows = [row for outcome in outcomes for row in outcome.rows]
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    if not rows:
        reason = failures[0]["reason"] if failures else "no people have its role"
        raise UserError(f"datasets.{dataset} got no face from {len(tasks)} photographs; the first: {reason}.")
    write_table(settings.table(dataset), rows, failures)
    videos = len({(row["method"], row["video_id"]) for row in rows})
    return Summary(videos, len(rows), failures)


def make_recipe(settings: Settings, dataset: str) -> Recipe:
    """The recipe of a dataset, checked against what there is.

    Raises:
        UserError: an unknown dataset, camera or forgery, or a forgery that needs landmarks from a face
            detector that gives none.
    """
    if dataset not in settings.datasets:
        raise UserError(f"params.yaml has no dataset {dataset!r}: it has {', '.join(settings.datasets)}.")
    chosen = settings.datasets[dataset]
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
    photographs = photographs_of(settings)
    places = divide_people((photo.identity for photo in photographs), settings.faces, settings.seed)
    role = settings.datasets[dataset].role
    chosen = [photo for photo in photographs if places[photo.identity].role == role]
    tasks = []
    for photo in chosen:
        place = places[photo.identity]
        others = [other for other in chosen if other.identity != photo.identity and places[other.identity] == place]
        donor = others[_generator(settings.seed, dataset, photo.name, "donor").integers(len(others))]
        tasks.append(Task(photo, place, donor))
    return tasks


def ingest_photograph(recipe: Recipe, task: Task) -> Outcome:
    """All frames of one photograph: the real ones, and those of each forgery.

    Each video that could not be made is a failure: all of them where the photograph is unusable, the swap
    alone where its donor is.
    """
    try:
        face = _exposed(recipe, task.photograph)
    except Unusable as error:
        return Outcome([], [_failure(recipe, task, method, error) for method in ("real", *recipe.forgeries)])
    outcome = Outcome(list(_frames(recipe, task, face, None, "real")), [])
    for method in recipe.forgeries:
        try:
            donor = _exposed(recipe, task.donor) if method == "swap" else None
        except Unusable as error:
            outcome.failures.append(_failure(recipe, task, method, error))
            continue
        rng = _generator(recipe.seed, recipe.dataset, face.photograph, method)
        outcome.rows.extend(_frames(recipe, task, face, forge(method, face, rng, donor), method))
    return outcome


def _exposed(recipe: Recipe, photograph: Photograph) -> Face:
    """The face as the dataset's camera takes it: the noise comes before any forgery."""
    face = photograph.face()
    rng = _generator(recipe.seed, recipe.dataset, photograph.name, "camera")
    return replace(face, image=expose(face.image, recipe.camera, rng))


def _failure(recipe: Recipe, task: Task, method: str, error: Unusable) -> dict[str, Any]:
    return {
        "dataset": recipe.dataset,
        "split": task.place.split,
        "label": int(method != "real"),
        "method": method,
        "video_id": task.photograph.name,
        "identity": task.photograph.identity,
        "outcome": error.outcome,
        "reason": error.reason,
    }


def _frames(recipe: Recipe, task: Task, face: Face, forgery: Forgery | None, method: str) -> Iterator[dict[str, Any]]:
    """The jittered crops of one photograph; quality and jitter are those of the real, whatever the method."""
    rng = _generator(recipe.seed, recipe.dataset, face.photograph, "quality")
    quality = int(rng.integers(recipe.camera.quality[0], recipe.camera.quality[1] + 1))
    published = decompress(compress(face.image if forgery is None else forgery.image, quality))
    sources = [face.photograph] if method != "swap" else [face.photograph, task.donor.name]
    for index in range(recipe.frames):
        jitter = draw_jitter(rng)
        image = crop(published, face.box, recipe.profile, jitter, face.landmarks)
        encoded = _png(image)
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
            "width": image.shape[1],
            "height": image.shape[0],
            "bbox": face.box.tolist(),
            "landmarks": None if face.landmarks is None else face.landmarks.ravel().tolist(),
            "mask": None
            if forgery is None
            else _png(crop(forgery.mask, face.box, recipe.profile, jitter, face.landmarks)),
            "forge_parameters": None if forgery is None else json.dumps(forgery.parameters, sort_keys=True),
            "attributes": [("camera", recipe.camera.name)],
            "image": encoded,
            "sha256": sha256(encoded),
            "phash": perceptual_hash(image),
            "profile": recipe.profile.hash,
            "schema_version": SCHEMA_VERSION,
        }


def _in_parallel(recipe: Recipe, tasks: list[Task]) -> Iterator[Outcome]:
    """Outcomes in the order of the tasks, whatever the number of processes."""
    processes = min(os.cpu_count() or 1, len(tasks))
    context = multiprocessing.get_context("spawn")  # OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(max(1, processes), mp_context=context) as pool:
        yield from pool.map(ingest_photograph, [recipe] * len(tasks), tasks, chunksize=4)


def _generator(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each dataset, photograph and purpose."""
    return np.random.default_rng((seed, *(zlib.crc32(name.encode()) for name in names)))


def _png(image: np.ndarray) -> bytes:
    """Lossless, so that the crop adds no trace of its own."""
    channels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", channels)[1].tobytes()
