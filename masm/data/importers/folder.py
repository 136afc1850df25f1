"""A folder of photographs of real people, one face in each, the person named by the file's name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from masm.data.faces import (
    CropProfile,
    Face,
    FaceDetector,
    find_face,
    make_detector,
    prepare_photograph,
)
from masm.data.images import IMAGE_SUFFIXES, ImageError, decode_image, image_files
from masm.data.importers.photograph import Named, Unusable
from masm.data.index import Stamp, stamp_of
from masm.data.profile import crop_profile, detector_weights
from masm.errors import UserError
from masm.settings import Settings


@dataclass(frozen=True)
class FilePhotograph(Named):
    """A photograph on disk, in which the face is still to be found."""

    path: Path
    working_size: int
    profile: CropProfile
    weights: Path | None

    def face(self) -> Face:
        """Decode the file, find the face and scale the photograph to the working size."""
        try:
            image = decode_image(self.path.read_bytes())
        except (ImageError, OSError) as error:
            raise Unusable("unreadable", str(error)) from None
        detection = find_face(image, _detector(self.profile, self.weights))
        if detection is None:
            raise Unusable("no face", f"{self.profile.detector} found no face in {self.path.name}")
        return prepare_photograph(image, detection, self.working_size, identity=self.identity, photograph=self.name)


@cache
def _detector(profile: CropProfile, weights: Path | None) -> FaceDetector:
    """Loaded once in each process, when the first photograph is opened."""
    return make_detector(profile, weights)


def folder_photographs(settings: Settings) -> list[FilePhotograph]:
    """Every image file of `faces.folder` and the folders below it, sorted by path.

    Raises:
        UserError: the folder is missing or holds no image, two files have one name, or a name does not match
            `faces.person_pattern`.
    """
    assert settings.faces.folder is not None  # Settings sees to it
    folder = settings.path(settings.faces.folder)
    files = image_files(folder)
    if not files:
        raise UserError(f"{folder} (faces.folder) holds no photographs: give a folder of {_suffixes()} files.")
    names = [str(file.relative_to(folder).with_suffix("")).replace("/", "-") for file in files]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{folder}: more than one file is named {min(repeated)}: rename one of them.")
    profile, weights = crop_profile(settings), detector_weights(settings)
    return [
        FilePhotograph(
            name, _person(file, settings.faces.person_pattern), file, settings.crop.working_size, profile, weights
        )
        for name, file in zip(names, files, strict=True)
    ]


def folder_stamps(settings: Settings) -> list[tuple[str, Stamp | None]]:
    """The name and stamp of every photograph, by which a change of the folder is seen."""
    return [(photo.name, stamp_of(photo.path)) for photo in folder_photographs(settings)]


def _person(file: Path, pattern: str) -> str:
    try:
        match = re.match(pattern, file.stem)
    except re.error as error:
        raise UserError(f"faces.person_pattern {pattern!r} is no regular expression: {error}.") from None
    if match is None or not match.groups():
        raise UserError(
            f"{file.name} does not say who it shows: faces.person_pattern {pattern!r} needs a group that matches."
        )
    return match.group(1)


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))
