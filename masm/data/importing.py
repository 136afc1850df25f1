"""Bringing a dataset in: a layout is read, an index is written, and params.yaml gets an entry."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masm.data.importers.layout import SPLITS, UNSPLIT, Notes, Source
from masm.data.importers.layouts import LAYOUTS
from masm.data.index import Clip, IndexedClip, stamp_of, write_index
from masm.data.splits import hold_out, straddling, strict_split
from masm.errors import UserError
from masm.settings import ROLE_SPLITS, ForgedDataset, ImportedDataset, Role, Settings


@dataclass(frozen=True)
class Request:
    """What is imported, and how.

    Attributes:
        layout: a name of `LAYOUTS`.
        path: the layout's file or folder.
        name: of the dataset.
        role: train, validate or test.
        root: where a manifest's paths begin; None: at its own folder.
        splits: the layout's splits that the dataset takes; None: those of its role. A train dataset of the split
            train alone holds its own val out.
        strict: leave out of train and val what straddles splits.
        compression, labels: as in `Source`.
    """

    layout: str
    path: Path
    name: str
    role: Role
    root: Path | None = None
    splits: tuple[str, ...] | None = None
    strict: bool = False
    compression: str | None = None
    labels: Path | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Imported:
    """What an import found, for the person who started it.

    Attributes:
        entry: what params.yaml says of the dataset now.
        index: the file.
        videos: (split, method) -> how many.
        files: how many the layout names, masks not counted.
        missing: how many of them there are not; ingest reports each.
        notes: what was left out, or read otherwise than it stood there, and how often.
        straddling: recordings that are seen in more than one split, and in which.
    """

    entry: ImportedDataset
    index: Path
    videos: dict[tuple[str, str], int]
    files: int
    missing: int
    notes: Notes
    straddling: dict[str, set[str]]


def import_dataset(settings: Settings, request: Request, progress: Callable[[int, int], None]) -> Imported:
    """Write indices/NAME.parquet and the entry datasets.NAME of params.yaml.

    Args:
        settings: all of params.yaml, into whose folder the index goes.
        request: what to import.
        progress: called with the videos whose files were looked at, and with how many there are.

    Raises:
        UserError: the layout is not as it should be, a video stands twice in a split, one class is missing, or
            none of the files is there.
    """
    _check_name(settings, request.name)
    root = Path(os.path.abspath(request.root or (request.path if request.path.is_dir() else request.path.parent)))
    source = Source(Path(os.path.abspath(request.path)), root, request.name, request.compression, request.labels)
    notes: Notes = Counter()
    clips = _read(request, source, notes)
    shared = straddling(clips)
    clips = _split(settings, request, clips, notes)
    splits = _check_splits(request, clips)
    indexed = _stamped(clips, root, progress)
    files = [stamp for clip in indexed for stamp in clip.stamps[: len(clip.clip.files)]]
    missing = sum(stamp is None for stamp in files)
    if missing == len(files):
        first = next((path for clip in clips for path in clip.files), "a file")
        raise UserError(f"none of the {len(files)} files of {request.path} is there, such as {first}: give --root.")
    index = settings.root / "indices" / f"{request.name}.parquet"
    digest = write_index(index, indexed, root)
    place = index.relative_to(settings.root)
    entry = ImportedDataset.model_validate({"role": request.role, "index": place, "digest": digest, "splits": splits})
    set_dataset(settings.root / "params.yaml", request.name, entry.model_dump(mode="json"), request.licence)
    videos = dict(Counter((clip.split, clip.method) for clip in clips))
    return Imported(entry, index, videos, len(files), missing, notes, shared)


def set_dataset(params: Path, name: str, entry: dict[str, Any], licence: str | None = None) -> None:
    """Set datasets.NAME in a params.yaml, and licences.NAME where one is given; its comments stay.

    The file is replaced in one step.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """One that writes null as null; ruamel's own writes nothing."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.preserve_quotes, yaml.width = True, 2**16
    tree = yaml.load(params.read_text())
    node = CommentedMap(entry)
    node.fa.set_flow_style()
    _set_last(tree["datasets"], name, node)
    if licence is not None:
        tree.setdefault("licences", CommentedMap())[name] = licence
    partial = params.with_name(f".{params.name}.partial-{os.getpid()}")
    with partial.open("w") as stream:
        yaml.dump(tree, stream)
    partial.replace(params)


def _set_last(section: Any, name: str, node: Any) -> None:
    """Set a key, a new one at the end; a comment or empty line that follows the section stays behind it."""
    last, new = next(reversed(section)), name not in section
    section[name] = node
    if new and last in section.ca.items:
        section.ca.items[name] = section.ca.items.pop(last)


def _check_name(settings: Settings, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"{name!r} cannot name a dataset: use letters, digits, - and _.")
    if isinstance(settings.datasets.get(name), ForgedDataset):
        raise UserError(f"datasets.{name} is one whose forgeries are made here: choose another --name.")


def _read(request: Request, source: Source, notes: Notes) -> list[Clip]:
    """The clips of the layout, each once in a split."""
    if request.layout == "folder":
        raise UserError(
            "real photographs alone are no dataset yet: run `masm demo --faces SRC`, which makes a workspace with "
            "datasets forged from them (faces.source: photographs)."
        )
    if request.layout not in LAYOUTS:
        raise UserError(f"there is no layout {request.layout!r}: `masm data list-layouts` shows them.")
    if not source.path.exists():
        raise UserError(f"there is nothing at {source.path}.")
    try:
        clips = list(LAYOUTS[request.layout].read(source, notes))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from None
    if not clips:
        left_out = "; ".join(f"{what}: {count}" for what, count in notes.items())
        raise UserError(f"{request.path} holds no videos of layout {request.layout}. {left_out}".strip())
    seen = Counter((clip.split, clip.method, clip.video_id) for clip in clips)
    if repeated := [key for key, count in seen.items() if count > 1]:
        split, method, video = min(repeated)
        where = f"{split or 'no split'}, {method}"
        raise UserError(f"{request.path}: {len(repeated)} videos stand there twice, such as {video} ({where}).")
    _check_files(request, clips)
    return clips


def _check_files(request: Request, clips: Sequence[Clip]) -> None:
    """A file belongs to one video, which may stand in several splits."""
    owners: dict[Path, tuple[str, str]] = {}
    shared = [
        (file, owner, clip)
        for clip in clips
        for file in clip.files
        if (owner := owners.setdefault(file, (clip.method, clip.video_id))) != (clip.method, clip.video_id)
    ]
    if shared:
        file, owner, clip = shared[0]
        count = len({file for file, *_ in shared})
        raise UserError(
            f"{request.path}: {count} files belong to two videos, such as {file} to {'/'.join(owner)} and "
            f"{clip.method}/{clip.video_id}: leave them in one."
        )


def _split(settings: Settings, request: Request, clips: list[Clip], notes: Notes) -> list[Clip]:
    """The clips in their final splits; a train dataset that takes no val of the layout gets one of its own."""
    unsplit = ROLE_SPLITS[request.role][0]
    clips = [replace(clip, split=unsplit) if clip.split == UNSPLIT else clip for clip in clips]
    if request.strict:
        clips = strict_split(clips)
    if request.role == "train" and request.splits == ("train",):
        notes["videos of the layout's val excluded (--splits train)"] += sum(clip.split == "val" for clip in clips)
        clips = [replace(clip, split="excluded") if clip.split == "val" else clip for clip in clips]
    if request.role == "train" and not any(clip.split == "val" for clip in clips):
        clips = hold_out(clips, settings.faces.validation_share, settings.seed)
        held = sum(clip.split == "val" for clip in clips)
        labels = {split: {clip.label for clip in clips if clip.split == split} for split in ("train", "val")}
        if labels["val"] != labels["train"] | labels["val"]:
            raise UserError(
                f"{request.path} has no val, and of its train videos none of one class can be held out as val without "
                f"parting a recording or a person: change faces.validation_share ({settings.faces.validation_share})."
            )
        notes["train videos held out as val (faces.validation_share)"] += held
    return clips


def _check_splits(request: Request, clips: Sequence[Clip]) -> tuple[str, ...]:
    """The splits that the dataset takes, after it is sure that they are fit to be taken."""
    takes_val_too = request.role == "train" and request.splits == ("train",)
    splits = ROLE_SPLITS[request.role] if takes_val_too or not request.splits else request.splits
    if unknown := set(splits) - set(ROLE_SPLITS["train"] if request.role == "train" else SPLITS):
        raise UserError(f"--splits: a {request.role} dataset cannot take {min(unknown)!r}.")
    if request.role == "train" and "train" not in splits:
        raise UserError(f"--splits: a train dataset takes train, not {' and '.join(splits)} alone.")
    # Each split of a train dataset is used on its own, those of the others together.
    for group in [(split,) for split in splits] if request.role == "train" else [splits]:
        labels = {clip.label for clip in clips if clip.split in group}
        where = " and ".join(group)
        if not labels:
            known = ", ".join(sorted({clip.split for clip in clips}))
            raise UserError(f"{request.path} has no videos of {where}, it has {known}: choose by --role or --splits.")
        if len(labels) == 1:
            kind = "fakes" if labels == {1} else "reals"
            raise UserError(f"{request.path} has only {kind} in {where}: bring the other class in with them.")
    taken = Counter((clip.method, clip.video_id) for clip in clips if clip.split in splits)
    if repeated := [video for (_, video), count in taken.items() if count > 1]:
        raise UserError(
            f"{request.path} has {len(repeated)} videos, such as {min(repeated)}, in more than one of "
            f"{', '.join(splits)}: take one with --splits, or each video once with --strict."
        )
    return tuple(splits)


def _stamped(clips: Sequence[Clip], root: Path, progress: Callable[[int, int], None]) -> list[IndexedClip]:
    indexed = []
    for clip in clips:
        paths = (*clip.files, *clip.masks)
        if outside := [path for path in paths if not path.is_relative_to(root)]:
            raise UserError(f"{outside[0]} does not lie below {root}: leave --root out for this layout.")
        indexed.append(IndexedClip(clip, tuple(stamp_of(path) for path in paths)))
        progress(len(indexed), len(clips))
    return indexed
