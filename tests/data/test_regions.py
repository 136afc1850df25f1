"""Facial regions and the masking by them, held against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from masm.data.images import ImageError
from masm.data.procedural import draw_face
from masm.data.regions import FACIAL, REGIONS, facial_regions, hide_patches

FRONTAL = np.array([[24, 28], [44, 28], [34, 40], [27, 49], [41, 49]], np.float32)  # eyes 20 apart, mouth 21 below


def test_regions_of_a_frontal_face() -> None:
    regions = facial_regions(FRONTAL, 64, 4).reshape(16, 16)

    def at(x: float, y: float) -> str:
        return REGIONS[regions[int(y // 4), int(x // 4)]]

    assert [at(24, 28), at(44, 28)] == ["eyes", "eyes"]
    assert [at(24, 20), at(44, 20)] == ["brows", "brows"]
    assert at(34, 40) == "nose"
    assert at(34, 50) == "mouth"
    assert at(34, 8) == "hair"
    assert at(34, 62) == "boundary"  # the chin
    assert at(18, 40) == "skin"  # a cheek
    assert at(2, 62) == "background"


def test_regions_turn_with_the_head() -> None:
    centre = np.array([32, 32], np.float32)
    upside_down = 2 * centre - FRONTAL
    turned = facial_regions(upside_down, 64, 8).reshape(8, 8)
    assert np.array_equal(turned, facial_regions(FRONTAL, 64, 8).reshape(8, 8)[::-1, ::-1])


def test_a_drawn_face_shows_every_facial_region() -> None:
    face = draw_face(0, 0, 0, 128)
    assert face.landmarks is not None
    shown = set(facial_regions(face.landmarks, 128, 8))
    assert shown >= set(range(len(FACIAL)))


def test_landmarks_on_a_line_are_refused() -> None:
    line = np.array([[10, 10], [20, 10], [15, 10], [12, 10], [18, 10]], np.float32)
    with pytest.raises(ImageError, match="one line"):
        facial_regions(line, 64, 8)


def some_regions(rng: np.random.Generator, count: int, tokens: int) -> np.ndarray:
    """Images of all kinds: regions missing, regions larger than what is to be hidden."""
    shares = rng.dirichlet(np.full(len(REGIONS), 0.4), count)
    return np.stack([rng.choice(len(REGIONS), tokens, p=share) for share in shares]).astype(np.uint8)


@pytest.mark.parametrize("hidden", [1, 17, 48, 63])
def test_one_region_is_covered_and_the_others_hide_like_shares(hidden: int) -> None:
    rng = np.random.default_rng(hidden)
    regions = some_regions(rng, 2000, 64)
    order, covered = hide_patches(regions, hidden, rng)
    for image in range(len(regions)):
        assert sorted(order[image]) == list(range(64))
        masked = set(order[image, 64 - hidden :])
        sizes = {name: set(np.flatnonzero(regions[image] == number)) for number, name in enumerate(REGIONS)}
        fitting = [sizes[name] for name in FACIAL if 0 < len(sizes[name]) <= hidden]
        whole = set(np.flatnonzero(covered[image]))
        assert whole in fitting if fitting else not whole
        assert whole <= masked
        share = (hidden - len(whole)) / (64 - len(whole))
        for patches in sizes.values():
            if patches != whole:
                assert abs(len(patches & masked) - share * len(patches)) < 1 + 1e-9


def test_every_fitting_region_is_covered_as_often_and_every_patch_hidden_as_often() -> None:
    draws = 6000
    regions = np.repeat(np.repeat(np.arange(len(REGIONS)), [4, 4, 2, 3, 9, 16, 8, 18])[None], draws, 0)
    order, covered = hide_patches(regions.astype(np.uint8), 48, np.random.default_rng(0))
    chosen = np.stack([covered[regions[0][None].repeat(draws, 0) == number].reshape(draws, -1)[:, 0]
                       for number in range(len(FACIAL))])  # fmt: skip
    assert np.array_equal(chosen.sum(0), np.ones(draws))
    assert np.allclose(chosen.mean(1), 1 / 6, atol=0.02)
    masked = np.zeros((draws, 64), bool)
    np.put_along_axis(masked, order[:, 16:], True, 1)
    for number, name in enumerate(FACIAL):
        rows = masked[chosen[number]]
        expected = (48 - (regions[0] == number).sum()) / (64 - (regions[0] == number).sum())
        elsewhere = rows[:, regions[0] != number].mean(0)
        assert np.allclose(elsewhere, expected, atol=0.07), name
