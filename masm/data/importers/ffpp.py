"""FaceForensics++ and DeepFakeDetection (DFD) as their download script leaves them: videos in one tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from masm.data.importers.layout import (
    COMPRESSIONS,
    SPLITS,
    UNSPLIT,
    VIDEO_SUFFIXES,
    Layout,
    Notes,
    Source,
    files_below,
    read_text,
)
from masm.data.importers.provenance import named_clip
from masm.data.index import Clip
from masm.errors import UserError

METHODS = {"Deepfakes": "DF", "Face2Face": "F2F", "FaceSwap": "FS", "NeuralTextures": "NT", "FaceShifter": "FSh"}
DFD = {"DeepFakeDetection": "DFD"}


def _read_ffpp(source: Source, notes: Notes) -> Iterator[Clip]:
    splits = _official_splits(source.path)
    for clip in _clips(source, notes, "FF++", "youtube", METHODS):
        names = set(clip.video_id.split("_"))
        homes = {split for split, members in splits.items() if names <= members}
        if not homes:
            notes["videos that are in no official split left out"] += 1
            continue
        yield replace(clip, split=homes.pop())


def _read_dfd(source: Source, notes: Notes) -> Iterator[Clip]:
    return _clips(source, notes, "DFD", "actors", DFD)


def _clips(source: Source, notes: Notes, origin: str, reals: str, methods: dict[str, str]) -> Iterator[Clip]:
    """The reals of one subset, and the forgeries made from them that are there."""
    level = _compression(source, reals)
    folders = {"real": source.path / "original_sequences" / reals}
    folders |= {short: source.path / "manipulated_sequences" / long for long, short in methods.items()}
    for method, folder in folders.items():
        videos = folder / level / "videos"
        if not videos.is_dir():
            notes[f"no {videos.relative_to(source.path)}"] += 1
            continue
        for file in files_below(videos, VIDEO_SUFFIXES, notes):
            mask = folder / "masks" / "videos" / file.name
            masks = (mask,) if method != "real" and mask.is_file() else ()
            yield named_clip(origin, file.stem, method, UNSPLIT, (file,), compression=level, masks=masks)


def _compression(source: Source, reals: str) -> str:
    """The level that was asked for, or the only one that is there."""
    folder = source.path / "original_sequences" / reals
    levels = [level for level in COMPRESSIONS if (folder / level / "videos").is_dir()]
    wanted = source.compression
    if wanted is None and len(levels) == 1:
        return levels[0]
    if wanted not in levels:
        there = f"has {' and '.join(levels)}" if levels else "has no <compression>/videos"
        raise UserError(f"{folder} {there}: choose raw, c23 or c40 with --compression, or another folder.")
    return wanted


def _official_splits(folder: Path) -> dict[str, set[str]]:
    """The clips of each split, from the lists of pairs; a pair's videos a_b and b_a stay together."""
    splits = {}
    for split in SPLITS:
        path = folder / "splits" / f"{split}.json"
        try:
            pairs = json.loads(read_text(path))
            splits[split] = {clip for first, second in pairs for clip in (first, second)}
        except (json.JSONDecodeError, TypeError, ValueError):
            raise UserError(f'{path} is no list of pairs such as [["071", "054"], ...].') from None
    return splits


LAYOUT = Layout(
    name="ffpp",
    summary="FaceForensics++ as downloaded, with its official split; --compression c23 where several are there",
    tree="""\
SRC/original_sequences/youtube/<compression>/videos/071.mp4
SRC/manipulated_sequences/<Deepfakes ...>/<compression>/videos/071_054.mp4
SRC/manipulated_sequences/<Deepfakes ...>/masks/videos/071_054.mp4     (where downloaded)
SRC/splits/{train,val,test}.json""",
    read=_read_ffpp,
)
DFD_LAYOUT = Layout(
    name="dfd",
    summary="DeepFakeDetection in the tree of FaceForensics++",
    tree="""\
SRC/original_sequences/actors/<compression>/videos/01__exit_phone_room.mp4
SRC/manipulated_sequences/DeepFakeDetection/<compression>/videos/01_02__exit_phone_room__YVGY8LOK.mp4""",
    read=_read_dfd,
)
