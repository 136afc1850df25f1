from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masm.data.augment import augment
from masm.data.batches import Frames, decode, epoch_order, method_batches, steps_of_epoch, training_batches
from masm.errors import UserError


def frames(reals: int, fakes: int) -> Frames:
    labels = np.array([0] * reals + [1] * fakes)
    images = [cv2.imencode(".png", np.full((8, 8, 3), i, np.uint8))[1].tobytes() for i in range(reals + fakes)]
    names = np.array([f"sample-{i}" for i in range(reals + fakes)])
    return Frames(images, labels, np.where(labels == 1, "swap", "real"), names)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_an_epoch_is_balanced_and_holds_every_sample(reals: int, fakes: int, epoch: int) -> None:
    labels = np.array([0] * reals + [1] * fakes)
    order = epoch_order(labels, seed=1, epoch=epoch)
    assert len(order) == 2 * max(reals, fakes)
    assert (labels[order].reshape(-1, 2) == [0, 1]).all()
    counts = np.bincount(order, minlength=reals + fakes)
    assert counts.min() >= 1
    for label in (0, 1):
        assert np.ptp(counts[labels == label]) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    labels = np.array([0, 1] * 50)
    first = epoch_order(labels, 1, 0)
    assert (first == epoch_order(labels, 1, 0)).all()
    assert (first != epoch_order(labels, 1, 1)).any()
    assert (first != epoch_order(labels, 2, 0)).any()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_workers_share_the_same_batches(world: int) -> None:
    data = frames(30, 20)
    alone = [set(batch.samples.tolist()) for batch in training_batches(data, 16, 5, 2)]
    shares = [list(training_batches(data, 16, 5, 2, rank, world)) for rank in range(world)]
    assert len(alone) == steps_of_epoch(data, 16) == 3
    for step, expected in enumerate(alone):
        parts = [share[step] for share in shares]
        assert set(np.concatenate([part.samples for part in parts]).tolist()) == expected
        assert {len(part.labels) for part in parts} == {16 // world}
        assert all(part.labels.mean() == 0.5 for part in parts)


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
        assert all(batch.labels.mean() == 0.5 for _, batch in one)
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


def test_decode_gives_rgb() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    assert decode([cv2.imencode(".png", red)[1].tobytes()])[0, :, 0, 0].tolist() == [255, 0, 0]


def test_augmentation_belongs_to_the_sample_not_to_its_place_in_the_batch() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = np.arange(6)
    whole = augment(images, samples, seed=1, epoch=0)
    order = np.array([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(augment(images[order], samples[order], 1, 0), whole[order], rtol=0, atol=0)
    assert not torch.equal(augment(images, samples, 1, 1), whole)
    assert whole.dtype == torch.float32
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_augmentation_against_its_formula() -> None:
    image = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    flip, brightness, contrast = np.random.default_rng((3, 2, 7)).random(3)
    expected = image.numpy().astype(np.float64)
    expected = expected[..., ::-1] if flip < 0.5 else expected
    expected = np.clip(expected + 0.1 * (2 * brightness - 1), 0, 1)
    expected = np.clip(expected * (1 + 0.1 * (2 * contrast - 1)), 0, 1)
    np.testing.assert_allclose(augment(image, np.array([7]), 3, 2).numpy(), expected, atol=1e-6)
