"""Which videos belong together, and splits that keep them together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from masm.data.index import Clip

JUDGES = ("test", "val", "train")
"""Splits by how much they judge: a strict split leaves the former ones as they are."""


def components(clips: Sequence[Clip]) -> np.ndarray:
    """The component (n,) of each clip: clips that share a recording or a known person are in one."""
    keys = [{("clip", name) for name in (clip.source_clip, *clip.sources)} for clip in clips]
    for members, clip in zip(keys, clips, strict=True):
        if clip.identity is not None:
            members.add(("person", clip.identity))
    number = {key: index for index, key in enumerate(sorted(set().union(*keys)))}
    pairs = [(row, number[key]) for row, members in enumerate(keys) for key in members]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    count = len(clips) + len(number)  # clips and keys are the nodes of one graph
    graph = coo_array((np.ones(len(pairs), bool), (rows, columns + len(clips))), shape=(count, count))
    return connected_components(graph, directed=False)[1][: len(clips)]


def straddling(clips: Sequence[Clip]) -> dict[str, set[str]]:
    """The recordings that clips of more than one split show or were made from, and these splits.

    A recording is named as `Clip.source_clip` has it.
    """
    splits: dict[str, set[str]] = {}
    for clip in clips:
        for recording in {clip.source_clip, *clip.sources}:
            splits.setdefault(recording, set()).add(clip.split)
    return {recording: found for recording, found in splits.items() if len(found) > 1}


def strict_split(clips: Sequence[Clip]) -> list[Clip]:
    """Clips, with all that straddles splits kept in the one that judges most and excluded from the others.

    A component of clips that belong together stays in test as it is, so that results remain comparable, and its
    clips of val and train get the split "excluded"; without test clips it stays in val.
    """
    groups = components(clips).tolist()
    home: dict[int, str] = {}
    for split in reversed(JUDGES):
        home.update({group: split for group, clip in zip(groups, clips, strict=True) if clip.split == split})
    return [
        clip if clip.split == home.get(group, clip.split) else replace(clip, split="excluded")
        for group, clip in zip(groups, clips, strict=True)
    ]


def hold_out(clips: Sequence[Clip], share: float, seed: int) -> list[Clip]:
    """Clips, with about this share of each class of the split train in the split val, by whole components.

    Which ones depends on the seed and on their names alone.
    """
    train = [index for index, clip in enumerate(clips) if clip.split == "train"]
    groups = components([clips[index] for index in train]).tolist()
    names: dict[int, str] = {}
    for group, index in zip(groups, train, strict=True):
        name = clips[index].source_clip
        names[group] = min(names.get(group, name), name)
    drawn = sorted(names, key=lambda group: hashlib.sha256(f"{seed}:{names[group]}".encode()).digest())
    labels: dict[int, Counter[int]] = {group: Counter() for group in drawn}
    for group, index in zip(groups, train, strict=True):
        labels[group][clips[index].label] += 1
    wanted = {label: share * count for label, count in sum(labels.values(), Counter()).items()}
    chosen: set[int] = set()
    taken: Counter[int] = Counter()
    for group in drawn:
        if all(taken[label] + count / 2 <= wanted[label] for label, count in labels[group].items()):
            chosen.add(group)
            taken += labels[group]
    held = {index for group, index in zip(groups, train, strict=True) if group in chosen}
    return [replace(clip, split="val") if index in held else clip for index, clip in enumerate(clips)]
