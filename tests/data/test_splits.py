from __future__ import annotations

import numpy as np
import pytest

from masm.data.index import Clip
from masm.data.splits import components, hold_out, straddling, strict_split


def clip(name: str, split: str = "train", sources: tuple[str, ...] = (), identity: str | None = None) -> Clip:
    return Clip(name, split, int(bool(sources)), "m", "f", identity, (sources or (name,))[0], sources, "raw", ())


def brute_force(clips: list[Clip]) -> list[set[int]]:
    """Sets of clips merged until none share anything."""
    groups = [
        ({index}, {one.source_clip, *one.sources} | ({("person", one.identity)} if one.identity else set()))
        for index, one in enumerate(clips)
    ]
    merged = True
    while merged:
        merged = False
        for first in range(len(groups)):
            for second in range(first + 1, len(groups)):
                if groups[first][1] & groups[second][1]:
                    groups[first] = (groups[first][0] | groups[second][0], groups[first][1] | groups[second][1])
                    del groups[second]
                    merged = True
                    break
            if merged:
                break
    return [members for members, _ in groups]


@pytest.mark.parametrize("seed", range(5))
def test_components_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips = []
    for index in range(40):
        sources = tuple(str(name) for name in rng.integers(0, 40, rng.integers(0, 3)))
        clips.append(clip(f"c{index}", "train", sources, rng.choice([None, "ann", "ben", *"abcdefgh"])))
    labels = components(clips)
    assert sorted(map(sorted, brute_force(clips))) == sorted(
        np.flatnonzero(labels == label).tolist() for label in np.unique(labels)
    )


def test_a_strict_split_prefers_what_judges_more() -> None:
    clips = [clip("a", "train"), clip("b", "val", ("a", "c")), clip("c", "test"), clip("d", "train"), clip("e", "val")]
    assert [one.split for one in strict_split(clips)] == ["excluded", "excluded", "test", "train", "val"]
    assert straddling(clips) == {"a": {"train", "val"}, "c": {"val", "test"}}


def test_what_is_held_out_is_whole_components_and_follows_the_seed_alone() -> None:
    clips = [clip(f"{name}{index}", sources=(f"r{name}",)) for name in range(50) for index in range(4)]
    clips.append(clip("t", "test"))
    held = hold_out(clips, 0.2, seed=1)
    assert sum(one.split == "val" for one in held) == 40
    assert straddling(held) == {}
    assert held[-1].split == "test"
    shuffled = [clips[index] for index in np.random.default_rng(0).permutation(len(clips))]
    assert {(c.video_id, c.split) for c in hold_out(shuffled, 0.2, 1)} == {(c.video_id, c.split) for c in held}
    assert hold_out(clips, 0.2, seed=2) != held
