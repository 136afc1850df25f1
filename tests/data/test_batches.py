from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from masm.data.batches import method_batches, steps_of_epoch, training_batches
from masm.data.frames import Frames
from masm.errors import UserError
from tests.data.tables import no_landmarks


def frames(reals: int, fakes: int) -> Frames:
    labels = np.array([0] * reals + [1] * fakes)
    images = [cv2.imencode(".png", np.full((8, 8, 3), i, np.uint8))[1].tobytes() for i in range(reals + fakes)]
    own, one = np.arange(reals + fakes), np.zeros(reals + fakes, np.int64)
    methods, points = np.where(labels == 1, "swap", "real"), no_landmarks(reals + fakes)
    return Frames(images, labels, methods, datasets=one, videos=own, sources=own, landmarks=points)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_the_same_batches(world: int) -> None:
    data = frames(30, 20)
    alone = [set(batch.samples.tolist()) for batch in training_batches(data, 16, 5, 2)]
    shares = [list(training_batches(data, 16, 5, 2, rank, world)) for rank in range(world)]
    assert len(alone) == steps_of_epoch(data, 16) == 4
    for step, expected in enumerate(alone):
        parts = [share[step] for share in shares]
        assert set(np.concatenate([part.samples for part in parts]).tolist()) == expected
        assert {len(part.labels) for part in parts} == {16 // world}
        assert all(part.labels.mean() == 0.5 for part in parts)


def test_an_epoch_is_the_same_again_and_another_one_is_not() -> None:
    """Defect 4 of the reference benchmark: no resume, and the sampler's epoch never set."""
    data = frames(30, 20)
    epoch, again, other_epoch = (list(training_batches(data, 16, 5, number)) for number in (2, 2, 3))
    for one, other in zip(epoch, again, strict=True):
        assert (one.samples == other.samples).all()
        assert torch.equal(one.images, other.images)
    assert any((one.samples != other.samples).any() for one, other in zip(epoch, other_epoch, strict=True))


@pytest.mark.parametrize("world", [1, 2])
def test_a_share_of_the_fakes_is_to_be_blended_the_same_for_any_workers(world: int) -> None:
    data = frames(60, 60)
    marked = {
        tuple(pair)
        for rank in range(world)
        for batch in training_batches(data, 8, 5, 2, rank, world, self_blends=0.3)
        for pair in batch.samples.reshape(-1, 2)[batch.blended].tolist()
    }
    alone = [
        (*pair, chosen)
        for batch in training_batches(data, 8, 5, 2, self_blends=0.3)
        for pair, chosen in zip(batch.samples.reshape(-1, 2).tolist(), batch.blended, strict=True)
    ]
    assert marked == {(real, fake) for real, fake, chosen in alone if chosen}
    assert 0.1 < len(marked) / len(alone) < 0.5
    for share, expected in ((0.0, 0), (1.0, len(alone))):
        assert sum(b.blended.sum() for b in training_batches(data, 8, 5, 2, self_blends=share)) == expected


def test_another_share_leaves_the_pairs_as_they_are() -> None:
    data = frames(20, 20)
    for one, other in zip(
        training_batches(data, 8, 5, 2), training_batches(data, 8, 5, 2, self_blends=0.5), strict=True
    ):
        assert (one.samples == other.samples).all()


def test_a_damaged_frame_stops_the_epoch_when_its_turn_comes() -> None:
    data = frames(10, 10)
    assert isinstance(data.images, list)
    data.images[7] = data.images[7][:30]
    with pytest.raises(UserError, match="is damaged"):
        list(training_batches(data, 8, 0, 0))


def test_a_batch_carries_the_pixels_of_its_samples() -> None:
    batch = next(training_batches(frames(10, 10), 8, 0, 0))
    assert batch.images.shape == (8, 3, 8, 8)
    assert batch.images[:, 0, 0, 0].tolist() == batch.samples.tolist()
    assert batch.labels.tolist() == (batch.samples >= 10).astype(float).tolist()


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(UserError, match="multiple of 6"):
        next(training_batches(frames(10, 10), 8, 0, 0, rank=0, world=3))


def three_methods(reals: int, fakes: tuple[int, int, int]) -> Frames:
    data = frames(reals, sum(fakes))
    return replace(data, methods=np.repeat(["real", "swap", "edit", "morph"], [reals, *fakes]))


@pytest.mark.parametrize("world", [1, 2])
def test_each_method_has_a_batch_with_as_many_reals(world: int) -> None:
    data = three_methods(12, (6, 3, 9))
    shares = [list(method_batches(data, 8, 5, 0, rank, world)) for rank in range(world)]
    for one in zip(*shares, strict=True):
        (method,) = {name for name, _ in one}
        assert all(batch.labels.mean() == 0.5 and not batch.blended.any() for _, batch in one)
        samples = np.concatenate([batch.samples for _, batch in one])
        assert set(data.methods[samples]) == {"real", method}
        for label in (0, 1):
            members = samples[data.labels[samples] == label]
            assert len(members) == 4
            assert len(set(members)) == min(4, int((data.methods == data.methods[members[0]]).sum()))
    assert [name for name, _ in shares[0]] == ["edit", "morph", "swap"]


def test_batches_of_methods_differ_from_draw_to_draw_alone() -> None:
    data = three_methods(30, (20, 20, 20))
    draws = [[batch.samples for _, batch in method_batches(data, 8, 5, draw)] for draw in (0, 0, 1)]
    assert all((one == other).all() for one, other in zip(draws[0], draws[1], strict=True))
    assert any((one != other).any() for one, other in zip(draws[0], draws[2], strict=True))
