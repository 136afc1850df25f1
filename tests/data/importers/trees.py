"""Layouts on disk, with files that hold no picture: an import looks at names, sizes and times alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from masm.data.importers.layout import Notes, Source
from masm.data.importers.layouts import LAYOUTS
from masm.data.index import Clip

OFFICIAL = {
    "train": [
        *(["000", "003"], ["605", "001"], ["639", "002"], ["837", "004"]),
        *(["875", "005"], ["982", "006"], ["756", "007"], ["955", "008"]),
    ],
    "val": [["606", "010"], ["640", "011"], ["838", "012"], ["876", "013"], ["983", "014"]],
    "test": [["755", "020"], ["954", "021"], ["022", "023"]],
}
"""A small split with the seven pairs of clips of one recording that straddle the official one."""

STRADDLING = {
    "FF++:755": {"train", "test"},
    "FF++:954": {"train", "test"},
    **{f"FF++:{clip}": {"train", "val"} for clip in ("605", "639", "837", "875", "982")},
}


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read(layout: str, path: Path, root: Path | None = None, **options: object) -> tuple[list[Clip], Notes]:
    """The clips of a layout, and what it left out."""
    notes: Notes = Counter()
    source = Source(path, root or (path if path.is_dir() else path.parent), "mine", **options)  # type: ignore[arg-type]
    return list(LAYOUTS[layout].read(source, notes)), notes


def ffpp_tree(folder: Path, methods: tuple[str, ...] = ("Deepfakes", "NeuralTextures"), level: str = "c23") -> Path:
    """FaceForensics++ with the clips of `OFFICIAL`."""
    for split, pairs in OFFICIAL.items():
        touch(folder / "splits" / f"{split}.json", json.dumps(pairs))
        for first, second in pairs:
            for clip in (first, second):
                touch(folder / "original_sequences" / "youtube" / level / "videos" / f"{clip}.mp4")
            for method in methods:
                for name in (f"{first}_{second}", f"{second}_{first}"):
                    touch(folder / "manipulated_sequences" / method / level / "videos" / f"{name}.mp4")
    return folder


def ffpp_manifest(frames: int = 3) -> dict[str, object]:
    """DeepfakeBench's FaceForensics++.json over `OFFICIAL`, for one forgery."""

    def video(key: str, folder: str, name: str) -> dict[str, object]:
        top = f"FaceForensics++/{folder}/c23"
        paths = [f"{top}/frames/{name}/{number:03d}.png" for number in range(frames)]
        masks = [path.replace("/frames/", "/masks/") for path in paths] if key != "FF-real" else []
        return {"label": key, "frames": paths, "masks": masks}

    reals: dict[str, object] = {}
    fakes: dict[str, object] = {}
    for split, pairs in OFFICIAL.items():
        names = [clip for pair in pairs for clip in pair]
        swapped = ["_".join(order) for pair in pairs for order in (pair, pair[::-1])]
        reals[split] = {"c23": {name: video("FF-real", "original_sequences/youtube", name) for name in names}}
        fakes[split] = {"c23": {name: video("FF-DF", "manipulated_sequences/Deepfakes", name) for name in swapped}}
    return {"FaceForensics++": {"FF-real": reals, "FF-DF": fakes}}


def store_manifest(folder: Path, tree: dict[str, object], separator: str = "/") -> Path:
    """The JSON file, and the files that it names."""
    manifest = touch(folder / "dataset_json" / "set.json", json.dumps(tree).replace("/", separator))
    for keys in tree.values():
        for splits in keys.values():  # type: ignore[attr-defined]
            for members in splits.values():
                for videos in members.values():
                    for video in [videos] if "frames" in videos else videos.values():
                        for path in (*video["frames"], *video.get("masks", ())):
                            touch(folder / path)
    return manifest
