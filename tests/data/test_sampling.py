from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masm.data.frames import Frames
from masm.data.sampling import epoch_pairs, pairs_of_epoch
from tests.data.tables import no_landmarks

Video = tuple[str, str, int]
"""Dataset, method, source."""


def make_frames(videos: dict[Video, int]) -> Frames:
    """Frames of videos with these numbers of frames; no images."""
    keys = [key for key, count in videos.items() for _ in range(count)]
    datasets, methods, sources = zip(*keys, strict=True)

    def numbers(values: list[object]) -> np.ndarray:
        known = {value: number for number, value in enumerate(dict.fromkeys(values))}
        return np.array([known[value] for value in values], np.int64)

    return Frames(
        images=[b""] * len(keys),
        labels=np.array([int(method != "real") for method in methods]),
        methods=np.array(methods, object),
        datasets=numbers(list(datasets)),
        videos=numbers(list(keys)),
        sources=numbers(list(zip(datasets, sources, strict=True))),
        landmarks=no_landmarks(len(keys)),
    )


def like_ffpp(sources: int, frames: int) -> dict[Video, int]:
    """As many reals as sources, and of each four forgeries."""
    methods = ("real", "DF", "F2F", "FS", "NT")
    return {("ff", method, source): frames for source in range(sources) for method in methods}


worlds = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["real", "swap", "edit", "morph"]), st.integers(0, 6)),
    st.integers(1, 9),
    min_size=2,
).filter(lambda videos: len({method == "real" for _, method, _ in videos}) == 2)


@given(worlds, st.sampled_from([2, 4, 16]), st.integers(0, 3))
def test_an_epoch_is_balanced_and_has_every_video(videos: dict[Video, int], batch_size: int, epoch: int) -> None:
    frames = make_frames(videos)
    pairs = epoch_pairs(frames, batch_size, seed=1, epoch=epoch)
    assert len(pairs) == pairs_of_epoch(frames, batch_size)
    assert len(pairs) % (batch_size // 2) == 0
    assert len(pairs) >= np.bincount(frames.labels).max()
    assert (frames.labels[pairs] == [0, 1]).all()
    assert set(frames.videos[pairs].ravel()) == set(frames.videos)
    for column in (0, 1):
        drawn = pairs[:, column]
        shares = Counter(frames.datasets[drawn].tolist())
        assert max(shares.values()) - min(shares.values()) <= 1
        for dataset, share in shares.items():
            own = drawn[frames.datasets[drawn] == dataset]
            methods = Counter(frames.methods[own].tolist())
            assert sum(methods.values()) == share
            assert max(methods.values()) - min(methods.values()) <= 1
            for method in methods:
                members = (frames.datasets == dataset) & (frames.methods == method) & (frames.labels == column)
                times = np.bincount(own, minlength=len(frames))[members]
                assert np.ptp(times) <= 1 or times.max() == 1  # no frame again before each was there


@given(worlds, st.integers(0, 3))
def test_as_many_pairs_as_possible_share_a_source_then_a_dataset(videos: dict[Video, int], epoch: int) -> None:
    frames = make_frames(videos)
    reals, fakes = epoch_pairs(frames, 4, seed=2, epoch=epoch).T
    for kind in (frames.sources, frames.datasets):
        counts = [Counter(kind[side].tolist()) for side in (reals, fakes)]
        most = sum(min(counts[0][key], counts[1][key]) for key in counts[0])
        assert int((kind[reals] == kind[fakes]).sum()) == most


def test_the_four_forgeries_of_a_recording_all_stand_beside_it() -> None:
    """32 frames of 8 recordings and of 4 x 8 forgeries: an epoch is every frame of a forgery once."""
    frames = make_frames(like_ffpp(sources=8, frames=32))
    pairs = epoch_pairs(frames, 32, seed=0, epoch=0)
    assert len(pairs) == 4 * 8 * 32
    assert (frames.sources[pairs[:, 0]] == frames.sources[pairs[:, 1]]).all()
    assert (np.bincount(pairs[:, 1])[frames.labels == 1] == 1).all()
    assert (np.bincount(pairs[:, 0])[frames.labels[: pairs[:, 0].max() + 1] == 0] == 4).all()


def test_a_small_method_has_its_share_and_a_large_one_every_video() -> None:
    videos = {("big", "swap", source): 4 for source in range(90)} | {
        ("big", "real", source): 4 for source in range(90)
    }
    videos |= {("small", "edit", 0): 2, ("small", "real", 0): 2}
    frames = make_frames(videos)
    pairs = epoch_pairs(frames, 8, seed=0, epoch=0)
    big = frames.datasets == 0
    assert big[pairs[:, 1]].sum() == len(pairs) / 2
    assert len(set(frames.videos[pairs[:, 1]]) & set(frames.videos[big])) == 90
    assert (frames.sources[pairs[:, 0]] == frames.sources[pairs[:, 1]]).mean() > 0.75


def test_videos_of_a_crowded_method_lengthen_the_epoch() -> None:
    """One frame of each of 50 videos of one of two methods: an epoch has room for twice as many pairs."""
    videos: dict[Video, int] = {("a", "swap", source): 1 for source in range(50)}
    videos |= {("a", "edit", 0): 1, ("a", "real", 0): 1}
    frames = make_frames(videos)
    assert pairs_of_epoch(frames, 2) == 100
    assert set(frames.videos[epoch_pairs(frames, 2, 0, 0)[:, 1]]) >= set(frames.videos[frames.methods == "swap"])


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    frames = make_frames(like_ffpp(sources=5, frames=3))
    first = epoch_pairs(frames, 4, 1, 0)
    assert (first == epoch_pairs(frames, 4, 1, 0)).all()
    assert (first != epoch_pairs(frames, 4, 1, 1)).any()
    assert (first != epoch_pairs(frames, 4, 2, 0)).any()


@pytest.mark.parametrize("side", [0, 1])
def test_over_many_epochs_every_frame_has_its_turn_alike(side: int) -> None:
    """Two datasets of 40 frames and 10: an epoch takes 21 or so of the first, chance decides which."""
    videos = {("a", "swap", s): 4 for s in range(10)} | {("b", "edit", s): 1 for s in range(2)}
    videos |= {(name, "real", source): count for (name, _, source), count in list(videos.items())}
    frames = make_frames(videos)
    times: dict[int, int] = defaultdict(int)
    for epoch in range(200):
        for frame in epoch_pairs(frames, 2, 3, epoch)[:, side]:
            times[int(frame)] += 1
    crowded = [times[i] for i in np.flatnonzero((frames.labels == side) & (frames.datasets == 0))]
    assert min(crowded) > 0.7 * np.mean(crowded)
    assert max(crowded) < 1.3 * np.mean(crowded)
