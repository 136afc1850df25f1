from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from kornia.enhance import jpeg_codec_differentiable
from scipy.ndimage import gaussian_filter

from masm.data.procedural import draw_face
from masm.data.selfblend import RANGES, blend_pairs, draw, face_ellipses, face_masks, self_blend
from tests.data.tables import no_landmarks

SIDE = 64
CPU = torch.device("cpu")
NOTHING = {"contrast": 1.0, "zoom": 1.0, "size": 1.0, "feather": 0.3, "opacity": 1.0, "quality": 90.0}


def pictures(count: int) -> torch.Tensor:
    """Blobs of colour with grain (count, 3, SIDE, SIDE) uint8."""
    rng = np.random.default_rng(0)
    blobs = gaussian_filter(rng.normal(0, 1, (count, 3, SIDE, SIDE)), (0, 0, 5, 5))
    grainy = 128 + 90 * blobs / abs(blobs).max() + rng.normal(0, 4, blobs.shape)
    return torch.from_numpy(np.clip(grainy, 0, 255)).byte()


def drawn(count: int, **fixed: float) -> dict[str, torch.Tensor]:
    generators = [np.random.default_rng((1, number)) for number in range(count)]
    return draw(generators, CPU) | {name: torch.full((count,), value) for name, value in fixed.items()}


def unchanged(count: int) -> dict[str, torch.Tensor]:
    """Draws by which copies are what they are copies of."""
    return drawn(count, **{name: NOTHING.get(name, 0.0) for name in RANGES})


@pytest.mark.parametrize("known", [False, True], ids=["no landmarks", "landmarks"])
def test_masks_are_soft_and_hold_the_face(known: bool) -> None:
    points = no_landmarks(40)
    if known:
        points[:] = [[22, 26], [42, 26], [32, 36], [25, 45], [39, 45]]
    masks = face_masks(points, SIDE, drawn(40))[:, 0]
    assert masks.shape == (40, SIDE, SIDE)
    assert masks.min() == 0
    assert masks.max() <= 1
    for mask, opacity, feather in zip(masks, drawn(40)["opacity"], drawn(40)["feather"], strict=True):
        assert mask[32:36, 31:33].min() == pytest.approx(float(opacity))
        assert mask[[0, 0, -1, -1], [0, -1, 0, -1]].max() == 0
        between = ((mask > 0.01 * opacity) & (mask < 0.99 * opacity)).float().mean()
        assert between > 0.1 * feather
        assert max(mask.diff(dim=0).abs().max(), mask.diff(dim=1).abs().max()) < opacity / (5 * feather)
    # No two outlines are alike.
    shapes = (masks > 0.5 * drawn(40)["opacity"][:, None, None]).flatten(1).float()
    assert len({tuple(shape.tolist()) for shape in shapes}) == 40


def test_masks_lie_on_drawn_faces() -> None:
    """The ellipse holds eyes, nose and mouth, and most of it is the face's box."""
    for person in range(4):
        face = draw_face(0, person, 0, 128)
        assert face.landmarks is not None
        (centre,), (axes,) = face_ellipses(face.landmarks[None, :5].astype(np.float64), 128)
        inner = np.linalg.solve(axes, (face.landmarks[:5] - centre).T)
        assert np.linalg.norm(inner, axis=0).max() < 1
        angles = np.linspace(0, 2 * np.pi, 64)
        border = centre + (axes @ np.stack([np.cos(angles), np.sin(angles)])).T
        low, high = face.box[:2], face.box[:2] + face.box[2:]
        assert (border > low - 0.15 * face.box[2:]).all()
        assert (border < high + 0.15 * face.box[2:]).all()
        assert 0.4 < np.pi * np.linalg.det(axes) / np.prod(face.box[2:]) < 0.9


def test_the_ellipse_stands_as_the_face_does() -> None:
    upright = np.array([[22, 26], [42, 26], [32, 36], [25, 45], [39, 45]], float)
    turn = cv2.getRotationMatrix2D((32, 32), -30, 1.0)
    turned = upright @ turn[:, :2].T + turn[:, 2]
    points = np.stack([upright, turned, np.full((5, 2), np.nan), np.full((5, 2), 9.0)])
    centres, axes = face_ellipses(points, SIDE)
    np.testing.assert_allclose(centres[1], turn[:, :2] @ centres[0] + turn[:, 2])
    np.testing.assert_allclose(axes[1], turn[:, :2] @ axes[0])
    assert centres[0] == pytest.approx([32, 35.5])
    assert axes[0, :, 1] == pytest.approx([0, 1.15 * 19])
    for unknown in (2, 3):  # none, and one point five times
        assert centres[unknown].tolist() == [32, 32]
        assert axes[unknown].tolist() == [[16, 0], [0, 0.32 * 64]]


def test_outside_of_the_mask_nothing_changes_and_inside_it_does() -> None:
    reals = pictures(20).float() / 255
    masks = face_masks(no_landmarks(20), SIDE, drawn(20))
    blends = self_blend(reals, masks, drawn(20))
    outside = (masks == 0).expand_as(reals)
    assert torch.equal(blends[outside], reals[outside])
    full = masks > 0.9 * drawn(20)["opacity"][:, None, None, None]
    for blend, real, inside in zip(blends, reals, full.expand_as(reals), strict=True):
        assert 0.003 < (blend - real)[inside].abs().mean() < 0.15
    assert blends.min() >= 0
    assert blends.max() <= 1


def test_the_copy_goes_where_it_is_sent() -> None:
    """Colour and shift against NumPy: whole pixels need no interpolation."""
    real = pictures(1).float() / 255
    masks = torch.ones((1, 1, SIDE, SIDE))
    how = {**unchanged(1), "across": torch.tensor([2 / SIDE]), "down": torch.tensor([-3 / SIDE])}
    moved = self_blend(real, masks, how)[0].numpy()
    np.testing.assert_allclose(moved[:, 3:, :-2], real[0].numpy()[:, :-3, 2:], atol=1e-5)
    how = {**unchanged(1), "contrast": torch.tensor([0.9]), "brightness": torch.tensor([0.05])}
    recoloured = self_blend(real, masks, {**how, "warmth": torch.tensor([0.04])})[0].numpy()
    tint = np.array([1.04, 1, 0.96])[:, None, None]
    np.testing.assert_allclose(recoloured, np.clip(tint * (0.9 * (real[0].numpy() - 0.5) + 0.55), 0, 1), atol=1e-5)


def test_a_copy_that_is_not_changed_leaves_the_real() -> None:
    reals = pictures(3).float() / 255
    blends = self_blend(reals, face_masks(no_landmarks(3), SIDE, unchanged(3)), unchanged(3))
    torch.testing.assert_close(blends, reals, rtol=0, atol=1e-5)


def test_both_of_a_pair_are_compressed_alike_and_the_others_are_left() -> None:
    images, samples = pictures(8), np.arange(8) + 100
    blended = np.array([True, False, True, False])
    out = blend_pairs(images, samples, blended, no_landmarks(8), seed=3, epoch=1)
    pixels = images.float() / 255
    for pair in (1, 3):
        assert torch.equal(out[2 * pair : 2 * pair + 2], pixels[2 * pair : 2 * pair + 2])
    for pair in (0, 2):
        how = draw([np.random.default_rng((3, 1, *samples[2 * pair : 2 * pair + 2].tolist()))], CPU)
        real = pixels[2 * pair : 2 * pair + 1]
        mask = face_masks(no_landmarks(1), SIDE, how)
        for place, before in ((0, real), (1, self_blend(real, mask, how))):
            expected = jpeg_codec_differentiable(before, how["quality"]).clamp(0, 1)
            torch.testing.assert_close(out[2 * pair + place : 2 * pair + place + 1], expected, rtol=0, atol=2e-3)


def test_the_compression_tells_no_class() -> None:
    """Far from the mask real and fake of a pair are one image: what the blocks lost is the same in both."""
    images, samples = pictures(40), np.arange(40)
    out = blend_pairs(images, samples, np.ones(20, bool), no_landmarks(40), seed=0, epoch=0)
    real, fake = out[::2], out[1::2]
    corner = np.s_[:, :, :8, :8]  # a block of its own
    torch.testing.assert_close(real[corner], fake[corner], rtol=0, atol=1e-5)
    assert (real[corner] - images[::2][corner] / 255).abs().mean() > 1e-3


def test_a_pair_has_its_blend_wherever_it_stands_in_a_batch() -> None:
    images, samples, points = pictures(8), np.arange(8), no_landmarks(8)
    every = np.ones(4, bool)
    whole = blend_pairs(images, samples, every, points, seed=0, epoch=0)
    for pair in range(4):  # a worker of its own for each
        rows = np.arange(2 * pair, 2 * pair + 2)
        own = blend_pairs(images[rows], samples[rows], every[:1], points[rows], seed=0, epoch=0)
        torch.testing.assert_close(own, whole[rows], rtol=0, atol=2e-3)
    assert not torch.equal(blend_pairs(images, samples, every, points, seed=0, epoch=1), whole)
    assert torch.equal(blend_pairs(images, samples, every, points, seed=0, epoch=0), whole)


def test_bytes_are_not_touched_in_place() -> None:
    images = pictures(2)
    before = images.clone()
    blend_pairs(images.float() / 255, np.arange(2), np.ones(1, bool), no_landmarks(2), 0, 0)
    floats = images.float() / 255
    kept = floats.clone()
    blend_pairs(floats, np.arange(2), np.ones(1, bool), no_landmarks(2), 0, 0)
    assert torch.equal(floats, kept)
    assert torch.equal(images, before)
