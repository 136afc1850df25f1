"""The DeepFake Detection Challenge: folders of videos, each with its metadata.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masm.data.importers.layout import SPLITS, UNSPLIT, VIDEO_SUFFIXES, Layout, Notes, Source, locate, read_text
from masm.data.index import Clip
from masm.errors import UserError


def _read(source: Source, notes: Notes) -> Iterator[Clip]:
    manifests = sorted(source.path.rglob("metadata.json"))
    if not manifests:
        raise UserError(f"there is no metadata.json in {source.path} or below it.")
    for manifest in manifests:
        videos = _entries(manifest)
        for name in sorted(videos):
            yield _clip(manifest, name, videos[name], notes)
        there = {file.name for file in manifest.parent.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES}
        if unlisted := there - set(videos):
            notes["videos that metadata.json does not name left out"] += len(unlisted)


def _entries(manifest: Path) -> dict[str, dict[str, Any]]:
    try:
        videos = json.loads(read_text(manifest))
        if all(isinstance(facts, dict) for facts in videos.values()):
            return videos
    except (json.JSONDecodeError, AttributeError):
        pass
    raise UserError(f'{manifest} is not as the challenge has it: {{"name.mp4": {{"label": "FAKE", ...}}}}.')


def _clip(manifest: Path, name: str, facts: dict[str, Any], notes: Notes) -> Clip:
    label = {"FAKE": 1, "REAL": 0}.get(str(facts.get("label")).upper(), facts.get("is_fake"))
    if label not in (0, 1):
        raise UserError(f"{manifest}: {name} has no label FAKE or REAL.")
    original = facts.get("original") if label else name
    split = facts.get("split", UNSPLIT)
    return Clip(
        video_id=Path(name).stem,
        split=split if split in SPLITS else UNSPLIT,
        label=int(label),
        method="fake" if label else "real",
        family="unknown" if label else "real",
        identity=None,
        source_clip=f"DFDC:{Path(original or name).stem}",
        sources=(f"DFDC:{Path(original).stem}",) if original else (),
        compression="unknown",
        files=(locate(manifest.parent, name, notes),),
    )


LAYOUT = Layout(
    name="dfdc",
    summary="the DeepFake Detection Challenge as downloaded, one part or several",
    tree="""\
SRC/[dfdc_train_part_0/]metadata.json     {"aaa.mp4": {"label": "FAKE", "split": "train", "original": "bbb.mp4"}}
SRC/[dfdc_train_part_0/]aaa.mp4""",
    read=_read,
)
