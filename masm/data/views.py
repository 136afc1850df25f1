"""Views for pretraining: crops of real faces, each through a camera of its own, with the regions of their patches.

The faces are drawn (`masm.data.procedural`), or found in a folder of photographs by YuNet. Both go the way of every
other face here: exposed by a camera, compressed, cropped.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from masm.data.camera import CAMERAS, compress, decompress, expose
from masm.data.faces import CropProfile, Face, Jitter, crop, crop_landmarks, make_profile
from masm.data.images import ImageError, image_files
from masm.data.importers.drawn import DrawnPhotograph
from masm.data.importers.folder import FilePhotograph
from masm.data.importers.photograph import Photograph, Unusable
from masm.data.regions import facial_regions
from masm.errors import UserError

FIRST_PERSON = 1_000_000  # people from here on are for pretraining alone, so no data set shows one of them
DRAWN_SIZE = 128  # pixels; the face is about half as wide, as in the embedded data sets
WORKING_SIZE = 72  # pixels, the longer side of a photograph's face box: about that of a drawn face
DRAWN_VIEWS = 4  # crops of each drawn photograph
MARGINS = (1.1, 1.6)
NOISE = (0.2, 2.0)  # factor on a camera's noise, so that its strength is worth knowing


@dataclass(frozen=True)
class Views:
    """Crops with the regions of their patches.

    Attributes:
        images: (n, S, S, 3) uint8 RGB.
        regions: (n, tokens) uint8 numbers of `masm.data.regions.REGIONS`, row by row.
        unusable: photographs that gave none, by name, with the reason.
    """

    images: np.ndarray
    regions: np.ndarray
    unusable: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def save(self, path: Path) -> None:
        """Write them as one safetensors file, whole or not at all."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file({"images": self.images, "regions": self.regions}, partial, metadata=self.unusable)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Views:
        """Read what `save` wrote."""
        with safe_open(path, "numpy") as file:
            return cls(file.get_tensor("images"), file.get_tensor("regions"), file.metadata() or {})


@dataclass(frozen=True)
class Viewing:
    """How a photograph is seen: its crops' number and size in pixels, the patches' side, and the seed."""

    photograph: Photograph
    views: int
    size: int
    patch: int
    seed: int

    def __call__(self) -> Views | Unusable:
        """The views of the photograph, or why there are none."""
        try:
            return views_of(self.photograph.face(), self)
        except Unusable as error:
            return error
        except ImageError as error:
            return Unusable("unusable", str(error))


def views_of(face: Face, viewing: Viewing) -> Views:
    """Crops of one face, each from a camera, a margin and a place drawn by chance.

    Raises:
        ImageError: the face has no usable landmarks.
    """
    images, regions = [], []
    for view in range(viewing.views):
        rng = np.random.default_rng((viewing.seed, 2, zlib.crc32(face.photograph.encode()), view))
        camera = list(CAMERAS.values())[rng.integers(len(CAMERAS))].scaled(float(rng.uniform(*NOISE)))
        quality = int(rng.integers(camera.quality[0], camera.quality[1] + 1))
        published = decompress(compress(expose(face.image, camera, rng), quality))
        profile = CropProfile("given", viewing.size, float(rng.uniform(*MARGINS)), None)
        shift_x, shift_y = rng.normal(0, 0.03, 2)
        jitter = Jitter(shift_x, shift_y, 1.0, flip=False)
        images.append(crop(published, face.box, profile, jitter))
        landmarks = crop_landmarks(face.box, profile, jitter, face.landmarks)
        if landmarks is None:
            raise ImageError("no landmarks to tell the face's regions by")
        regions.append(facial_regions(landmarks, viewing.size, viewing.patch))
    return Views(np.stack(images), np.stack(regions))


def drawn_people(seed: int, people: int, photographs: int) -> list[DrawnPhotograph]:
    """Photographs of people that no data set shows."""
    return [
        DrawnPhotograph(f"drawn-{person}-{photograph}", f"drawn-{person}", seed, person, photograph, DRAWN_SIZE)
        for person in range(FIRST_PERSON, FIRST_PERSON + people)
        for photograph in range(photographs)
    ]


def photographs_in(folder: Path, detector_weights: Path) -> list[FilePhotograph]:
    """Every image file of a folder and the folders below it, sorted by path in C order.

    Raises:
        UserError: the folder holds none, or YuNet's file is missing.
    """
    files = image_files(folder)
    if not files:
        raise UserError(f"{folder} (pretrain.folder) holds no photographs: give a folder of real faces.")
    profile = make_profile("yunet", WORKING_SIZE, 1.0, detector_weights)
    return [
        FilePhotograph(str(file.relative_to(folder)), file.stem, file, WORKING_SIZE, profile, detector_weights)
        for file in files
    ]


def digest_of(photographs: Sequence[FilePhotograph]) -> str:
    """SHA-256 of the list of photographs: one line each, the file's SHA-256, two spaces and its name.

    A file that cannot be read has no line; `make_views` names it.
    """
    lines = []
    for photo in photographs:
        with suppress(OSError):
            lines.append(f"{hashlib.sha256(photo.path.read_bytes()).hexdigest()}  {photo.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def make_views(viewings: Sequence[Viewing], progress: Callable[[int], None]) -> Views:
    """The views of all photographs, in their order, made in all the processes that the machine has cores.

    Args:
        viewings: one for each photograph.
        progress: called with the number of photographs done.

    Raises:
        UserError: none gave any.
    """
    parts, unusable = [], {}
    for done, (viewing, result) in enumerate(zip(viewings, _run(viewings), strict=True), 1):
        if isinstance(result, Views):
            parts.append(result)
        else:
            unusable[viewing.photograph.name] = result.reason
        progress(done)
    if not parts:
        name, reason = next(iter(unusable.items()))
        raise UserError(f"none of {len(viewings)} photographs gave a face; the first, {name}: {reason}.")
    images = np.concatenate([part.images for part in parts])
    return Views(images, np.concatenate([part.regions for part in parts]), unusable)


def _run(viewings: Sequence[Viewing]) -> Iterator[Views | Unusable]:
    context = multiprocessing.get_context("spawn")  # OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        yield from pool.map(_view, viewings, chunksize=8)


def _view(viewing: Viewing) -> Views | Unusable:
    return viewing()
