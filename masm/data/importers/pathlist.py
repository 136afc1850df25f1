"""Text files of image paths, one file for each source, as GenD reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from masm.data.importers.layout import (
    SPLITS,
    UNSPLIT,
    Layout,
    Notes,
    Source,
    files_below,
    in_frame_order,
    locate,
    read_text,
)
from masm.data.importers.provenance import FAMILIES, names_reals, provenance
from masm.data.index import Clip
from masm.errors import UserError

ORIGINS = {"FF": "FF++", "CDF": "Celeb-DF", "CDFv1": "Celeb-DF", "CDFv2": "Celeb-DF", "DFD": "DFD"}
"""GenD's names of the datasets whose videos' names say what they show."""


def _read(source: Source, notes: Notes) -> Iterator[Clip]:
    manifests = [source.path] if source.path.is_file() else files_below(source.path, {".txt"}, notes)
    if not manifests:
        raise UserError(f"there is no .txt file in {source.path} or below it.")
    for manifest in manifests:
        split = manifest.parent.name if manifest.parent.name in SPLITS else UNSPLIT
        videos: dict[tuple[str, str, str], list[Path]] = defaultdict(list)
        for line in read_text(manifest).splitlines():
            if line.strip():
                path = locate(source.root, line.strip(), notes)
                if len(path.relative_to(source.root).parts) < 3:
                    raise UserError(f"{manifest}: {line.strip()!r} is not <dataset>/<source>/<video>/<frame>.")
                dataset, kind, video = path.parts[-4:-1]
                videos[dataset, kind, video].append(path)
        for (dataset, kind, video), frames in videos.items():
            if repeated := len(frames) - len(set(frames)):
                notes["paths that stand twice in one list were taken once"] += repeated
            yield _clip(split, dataset, kind, video, in_frame_order(set(frames)))


def _clip(split: str, dataset: str, kind: str, video: str, frames: tuple[Path, ...]) -> Clip:
    label = int(not names_reals(kind))
    method = kind if label else "real"
    known = provenance(ORIGINS.get(dataset, dataset), video, method)
    return Clip(
        video_id=video,
        split=split,
        label=label,
        method=method,
        family=FAMILIES.get(method, "unknown"),
        identity=known.identity,
        source_clip=known.source_clip,
        sources=known.sources,
        compression="unknown",
        files=frames,
    )


LAYOUT = Layout(
    name="pathlist",
    summary="text files of image paths, one per source (GenD); --root says where the paths begin",
    tree="""\
SRC              a .txt file, or a folder of them; in a folder train, val or test that is their split
  each line      [...]/<dataset>/<source>/<video>/<frame>.png below ROOT; real if <source> ends in the word real""",
    read=_read,
)
