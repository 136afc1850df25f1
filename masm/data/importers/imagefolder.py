"""Folders named by split and class, as torchvision and most image trainers read them."""

from __future__ import annotations

from collections.abc import Iterator

from masm.data.images import IMAGE_SUFFIXES
from masm.data.importers.layout import SPLITS, Layout, Notes, Source, files_below, photographed
from masm.data.importers.provenance import named_clip
from masm.data.index import Clip
from masm.errors import UserError

CLASSES = ("real", "fake")


def _read(source: Source, notes: Notes) -> Iterator[Clip]:
    here = sorted(folder.name for folder in source.path.iterdir() if folder.is_dir())
    if not set(here) & set(SPLITS):
        raise UserError(f"{source.path} holds {here}: expected train, val or test, and in them real and fake.")
    for name in here:
        if name not in SPLITS:
            notes[f"folders left out ({name})"] += 1
            continue
        for kind in sorted(folder.name for folder in (source.path / name).iterdir() if folder.is_dir()):
            if kind not in CLASSES:
                raise UserError(f"{source.path / name} holds {kind!r}: its folders must be real and fake.")
            yield from _class(source, notes, name, kind)


def _class(source: Source, notes: Notes, split: str, kind: str) -> Iterator[Clip]:
    """Images that lie in the class's folder are videos of one frame; a folder of images in it is a video."""
    top = source.path / split / kind
    for folder, frames in photographed(files_below(top, IMAGE_SUFFIXES, notes)):
        parts = folder.relative_to(top).parts
        method = parts[0] if kind == "fake" and len(parts) > 1 else kind
        if not parts:
            yield from (named_clip(source.name, frame.stem, method, split, (frame,)) for frame in frames)
        else:
            yield named_clip(source.name, "/".join(parts[len(parts) > 1 :]), method, split, frames)


LAYOUT = Layout(
    name="imagefolder",
    summary="images in folders named by split and class; a folder of images in a class is one video",
    tree="""\
SRC/{train,val,test}/real/face.png                     a video of one frame
SRC/{train,val,test}/fake/[<method>/]<video>/NNN.png   a video of several""",
    read=_read,
)
