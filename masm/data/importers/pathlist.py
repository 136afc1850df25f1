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
from masm.data.importers.provenance import named_clip, names_reals
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
            method = "real" if names_reals(kind) else kind
            yield named_clip(ORIGINS.get(dataset, dataset), video, method, split, in_frame_order(set(frames)))


LAYOUT = Layout(
    name="pathlist",
    summary="text files of image paths, one per source (GenD); --root says where the paths begin",
    tree="""\
SRC              a .txt file, or a folder of them; in a folder train, val or test that is their split
  each line      [...]/<dataset>/<source>/<video>/<frame>.png below ROOT; real if <source> ends in the word real""",
    read=_read,
)
