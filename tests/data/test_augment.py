from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from masm.data.augment import Augmentation, augment

ALL = Augmentation(blur=0.5, noise=0.5, jpeg=0.5)


def smooth(count: int, side: int = 64) -> torch.Tensor:
    """Blobs of colour (count, 3, side, side), away from black and white."""
    noise = np.random.default_rng(0).normal(0, 1, (count, 3, side, side))
    blobs = gaussian_filter(noise, (0, 0, 4, 4))
    return torch.from_numpy(0.5 + 0.25 * blobs / abs(blobs).max()).float()


def strengths(sample: int, seed: int = 1, epoch: int = 0) -> np.ndarray:
    """What is drawn for a sample, in the order of its use."""
    return np.random.default_rng((seed, epoch, sample)).random(9)


@pytest.mark.parametrize("augmentation", [Augmentation(), ALL], ids=["mild", "degrading"])
def test_augmentation_belongs_to_the_sample_not_to_its_place_in_the_batch(augmentation: Augmentation) -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = np.arange(6)
    whole = augment(images, samples, 1, 0, augmentation)
    order = np.array([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(
        augment(images[order], samples[order], 1, 0, augmentation), whole[order], rtol=0, atol=1e-6
    )
    assert not torch.equal(augment(images, samples, 1, 1, augmentation), whole)
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


def test_bytes_in_any_order_in_memory_become_the_same_floats() -> None:
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert torch.equal(
        augment(images, np.arange(2), 1, 0), augment(images.contiguous().float() / 255, np.arange(2), 1, 0)
    )


def test_without_shares_nothing_is_degraded_and_with_them_as_many_as_they_say() -> None:
    images, samples = smooth(400, side=16), np.arange(400)
    mild = augment(images, samples, 1, 0)
    for place, kind in ((3, "blur"), (5, "noise"), (7, "jpeg")):
        degraded = augment(images, samples, 1, 0, Augmentation(**{kind: 0.3}))
        changed = (degraded != mild).flatten(1).any(dim=1).numpy()
        expected = np.array([strengths(sample)[place] < 0.3 for sample in samples])
        assert (changed == expected).all()
        assert 0.2 < changed.mean() < 0.4


def test_blur_is_a_gaussian_of_the_drawn_sigma() -> None:
    images, samples = smooth(5), np.arange(5)
    images += 0.1 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    mild = augment(images, samples, 1, 0).numpy().astype(np.float64)
    blurred = augment(images, samples, 1, 0, Augmentation(blur=1)).numpy()
    for sample in samples:
        sigma = 0.3 + 1.2 * strengths(sample)[4]
        expected = gaussian_filter(mild[sample], (0, sigma, sigma), mode="mirror", radius=6)
        np.testing.assert_allclose(blurred[sample], expected, atol=1e-5)


def test_noise_has_the_drawn_deviation() -> None:
    images, samples = smooth(5), np.arange(5)
    mild = augment(images, samples, 1, 0)
    noise = (augment(images, samples, 1, 0, Augmentation(noise=1)) - mild).numpy()
    for sample in samples:
        assert noise[sample].std() == pytest.approx(0.005 + 0.035 * strengths(sample)[6], rel=0.03)
        assert abs(noise[sample].mean()) < 0.002
    assert abs(np.corrcoef(noise.reshape(5, -1)) - np.eye(5)).max() < 0.05


def test_compression_is_about_that_of_a_jpeg_encoder() -> None:
    images, samples = smooth(5), np.arange(5)
    images = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    mild = augment(images, samples, 1, 0)
    compressed = augment(images, samples, 1, 0, Augmentation(jpeg=1))
    for sample in samples:
        file = io.BytesIO()
        pixels = (mild[sample].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=round(40 + 55 * strengths(sample)[8]))
        expected = np.asarray(Image.open(file)) / 255
        off = abs(compressed[sample].permute(1, 2, 0).numpy() - expected).mean()
        assert off < 0.3 * abs(expected - pixels / 255).mean()
