"""The starter's pretraining, with tiny sizes: the real loop on really drawn faces."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from masm.backbones import build_backbone
from masm.pretraining import (
    BANDS,
    ENERGY_FLOOR,
    FIRST_PERSON,
    TOKEN_STD,
    VIEWS,
    MaskedAutoencoder,
    PretrainRecipe,
    learning_rate_share,
    pretrain,
    views_of,
    whiten_patches,
)

RECIPE = PretrainRecipe(seed=3, people=4, photographs=1, steps=30, batch_size=16, lr=1e-3)
ARGUMENTS = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.concatenate([views_of(FIRST_PERSON + person, RECIPE, 32) for person in range(4)])


def run(images: np.ndarray, recipe: PretrainRecipe) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    encoder = build_backbone("vit_tiny_patch16_224", ARGUMENTS)
    losses: list[float] = []
    pretrain(encoder, images, recipe, lambda _, loss: losses.append(loss))
    return losses, encoder.state_dict()


def test_views_are_reproducible_crops(images: np.ndarray) -> None:
    assert images.shape == (4 * VIEWS, 32, 32, 3)
    assert np.array_equal(images[:VIEWS], views_of(FIRST_PERSON, RECIPE, 32))
    assert len({image.tobytes() for image in images}) == len(images)


def test_loss_falls_and_the_seed_fixes_the_weights(images: np.ndarray) -> None:
    losses, weights = run(images, RECIPE)
    assert len(losses) == RECIPE.steps
    assert losses[-1] < 0.97 * losses[0]
    again = run(images, RECIPE)[1]
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    other = run(images, replace(RECIPE, seed=4))[1]
    assert not torch.equal(weights["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_encoder_sees_the_visible_patches_alone(images: np.ndarray) -> None:
    """Changing hidden patches changes the targets, never what the encoder computes."""
    model = MaskedAutoencoder(build_backbone("vit_tiny_patch16_224", ARGUMENTS)).eval()
    visible = torch.tensor([[0, 5, 10, 15]])
    first = torch.from_numpy(images[:1]).permute(0, 3, 1, 2).float() / 127.5 - 1
    second = first.clone()
    second[:, :, :8, 8:] = 0  # patches 1, 2 and 3
    with torch.no_grad():
        assert torch.equal(model._encode(first, visible), model._encode(second, visible))
        second[:, :, :8, :8] = 0  # patch 0 is seen
        assert not torch.equal(model._encode(first, visible), model._encode(second, visible))


def test_targets_are_normalised_patches_in_the_order_of_the_tokens() -> None:
    model = MaskedAutoencoder(build_backbone("vit_tiny_patch16_224", ARGUMENTS))
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = model._pixels(image)
    patch = image[0, :, 8:16, 16:24].numpy().astype(np.float64).ravel()  # row 1, column 2 of 4
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-4)
    assert targets.shape == (1, 16, 192)
    assert np.allclose(targets[0, 6].numpy(), expected, atol=1e-5)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 200) for step in range(200)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[105] == pytest.approx(0.5 * (1 + math.cos(math.pi * 95 / 190)))
    assert shares[-1] < 1e-3


def test_energies_are_those_of_the_cosine_transform() -> None:
    model = MaskedAutoencoder(build_backbone("vit_tiny_patch16_224", ARGUMENTS))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grey = images.numpy().astype(np.float64).mean(1)
    order = np.add.outer(np.arange(8), np.arange(8))
    expected = np.empty((3, 16, BANDS))
    for image in range(3):
        for token in range(16):
            row, column = 8 * (token // 4), 8 * (token % 4)
            squares = dctn(grey[image, row : row + 8, column : column + 8], norm="ortho") ** 2
            for band in range(BANDS):
                members = (order > 0) & ((order - 1) * BANDS // 14 == band)
                expected[image, token, band] = np.log(squares[members].mean() + ENERGY_FLOOR)
    expected = (expected - expected.mean((0, 1))) / expected.std((0, 1), ddof=1)
    # The library normalises each band over all tokens of the batch.
    np.testing.assert_allclose(model._energies(images).numpy(), expected, atol=2e-3)


def test_whitened_patches_have_equal_variances_and_no_correlation() -> None:
    encoder = build_backbone("vit_tiny_patch16_224", ARGUMENTS)
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8)
    whiten_patches(encoder, images)
    with torch.no_grad():
        tokens = encoder.patch_embed(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    covariance = np.cov(tokens.flatten(0, 1).double().numpy().T)
    np.testing.assert_allclose(covariance, TOKEN_STD**2 * np.eye(48), atol=1e-4)
