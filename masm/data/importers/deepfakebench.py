"""DeepfakeBench's JSON manifests, in both directions.

{dataset: {label key: {split: {[compression, in the FF++ family alone:] video: {"label", "frames", "masks"}}}}}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from masm.data.importers.layout import COMPRESSIONS, SPLITS, Layout, Notes, Source, in_frame_order, locate, read_text
from masm.data.importers.provenance import named_clip, names_reals
from masm.data.index import Clip
from masm.errors import UserError

METHODS = {
    "FF-DF": "DF",
    "FF-F2F": "F2F",
    "FF-FS": "FS",
    "FF-NT": "NT",
    "FF-FH": "FSh",
    "FF-SH": "FSh",
    "DFD_fake": "DFD",
    "CelebDFv1_fake": "Celeb-synthesis",
    "CelebDFv2_fake": "Celeb-synthesis",
    "DFDCP_FakeA": "FakeA",
    "DFDCP_FakeB": "FakeB",
    "DF_fake": "DeeperForensics",
}
"""Our names of the forgeries whose label key is not METHOD_Fake."""


class Video(BaseModel):
    """One video of a manifest."""

    frames: list[str]
    masks: list[str] = []


Members = dict[str, Video]
MANIFEST = TypeAdapter(dict[str, dict[str, dict[Literal["train", "val", "test"], Members | dict[str, Members]]]])


def _read(source: Source, notes: Notes) -> Iterator[Clip]:
    try:
        tree = MANIFEST.validate_json(read_text(source.path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ", ".join(str(part) for part in fault["loc"][:5]) or "the whole of it"
        raise UserError(f"{source.path} is no manifest of DeepfakeBench: {where}: {fault['msg']}.") from None
    for dataset, keys in tree.items():
        for key, splits in keys.items():
            for split, members in splits.items():
                for compression, name, video in _videos(source, members, notes):
                    yield _clip(source, notes, f"{dataset}/{key}", split, compression, name, video)


def _videos(source: Source, members: Members | dict[str, Members], notes: Notes) -> Iterator[tuple[str, str, Video]]:
    """Compression, name and files of each video, of the one compression that is imported."""
    levels: dict[str, Members] = {level: videos for level, videos in members.items() if isinstance(videos, dict)}
    yield from (("unknown", name, video) for name, video in members.items() if isinstance(video, Video))
    if unknown := set(levels) - set(COMPRESSIONS):
        raise UserError(f"{source.path}: {min(unknown)!r} is neither a video nor one of raw, c23 and c40.")
    filled = sorted(level for level, videos in levels.items() if videos)
    if source.compression is None and len(filled) > 1:
        raise UserError(f"{source.path} has {' and '.join(filled)}: choose one with --compression.")
    for level in filled:
        if level == (source.compression or level):
            yield from ((level, name, video) for name, video in levels[level].items())
        else:
            notes[f"videos of compression {level} left out"] += len(levels[level])


def _clip(source: Source, notes: Notes, keys: str, split: str, compression: str, name: str, video: Video) -> Clip:
    return named_clip(
        _origin(keys.split("/", 1)[0]),
        name,
        _method(source, keys),
        split,
        in_frame_order(locate(source.root, frame, notes) for frame in video.frames),
        compression=compression,
        masks=in_frame_order(locate(source.root, mask, notes) for mask in video.masks),
        attributes=(("deepfakebench", keys),),
    )


def _method(source: Source, keys: str) -> str:
    """The forgery, or "real", of DATASET/LABEL KEY."""
    key = keys.split("/", 1)[1]
    if names_reals(key):
        return "real"
    method = METHODS.get(key) or re.sub("_fake$", "", key, flags=re.IGNORECASE)
    if method == key:
        known = ", ".join(METHODS)
        raise UserError(
            f"{source.path}: {keys} is neither NAME_real nor NAME_fake, nor one of {known}: rename the key."
        )
    return method


def _origin(dataset: str) -> str:
    """Whose recordings a dataset shows: DF40's METHOD_ff and METHOD_cdf are made from FF++ and Celeb-DF."""
    if dataset.startswith(("FaceForensics++", "FF-", "FaceShifter")) or dataset.endswith("_ff"):
        return "FF++"
    if dataset.startswith("Celeb-DF") or dataset.endswith("_cdf"):
        return "Celeb-DF"
    return "DFD" if dataset.startswith("DeepFakeDetection") else dataset


def manifest(clips: Iterable[Clip], name: str, root: Path) -> dict[str, Any]:
    """The manifest of some clips; those that came from one keep their dataset and label keys.

    Args:
        clips: of frames; a strict split's excluded ones are left out.
        name: the dataset's key, for clips that came from elsewhere.
        root: at which the paths begin.
    """
    tree: dict[str, Any] = {}
    for clip in clips:
        if clip.split not in SPLITS:
            continue
        own = f"{name}/{name}_Real" if clip.label == 0 else f"{name}/{clip.method}_Fake"
        dataset, key = dict(clip.attributes).get("deepfakebench", own).split("/", 1)
        # That benchmark asks for each split of each key, whether or not there are videos in it.
        splits = tree.setdefault(dataset, {}).setdefault(key, {split: {} for split in SPLITS})
        if clip.compression in COMPRESSIONS:
            splits = {split: videos.setdefault(clip.compression, {}) for split, videos in splits.items()}
        splits[clip.split][clip.video_id] = {
            "label": key,
            "frames": [path.relative_to(root).as_posix() for path in clip.files],
            "masks": [path.relative_to(root).as_posix() for path in clip.masks],
        }
    return tree


LAYOUT = Layout(
    name="deepfakebench",
    summary="a JSON file of DeepfakeBench or DF40, over aligned crops; --root says where its paths begin",
    tree="""\
SRC              FaceForensics++.json, Celeb-DF-v2.json, simswap_ff.json ...
ROOT/<dataset>/<subset>/[<compression>/]frames/<video>/NNN.png""",
    read=_read,
)
