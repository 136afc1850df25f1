from __future__ import annotations

import cv2
import numpy as np
import pytest

from masm.data.forge import pixels

TRIANGLE = np.array([[50.0, 60.0], [150.0, 70.0], [95.0, 160.0]])


def picture(noise: float) -> np.ndarray:
    """A smooth random picture with a camera's noise."""
    rng = np.random.default_rng(5)
    coarse = rng.uniform(60, 200, (12, 12, 3)).astype(np.float32)
    clean = cv2.resize(coarse, (192, 208), interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(clean + rng.normal(0, noise, clean.shape)), 0, 255).astype(np.uint8)


class TestFeathered:
    def test_is_full_inside_empty_outside_and_half_on_the_edge(self) -> None:
        square = np.array([[40, 40], [140, 40], [140, 140], [40, 140]])
        mask = pixels.feathered(square, 5.0, (180, 180))
        assert mask[90, 90] == 255
        assert mask[90, 10] == 0
        assert abs(int(mask[90, 40]) - 128) < 20  # the outline itself counts as inside: half a pixel


class TestColour:
    def lab(self, rgb: np.ndarray) -> np.ndarray:
        """CIE L*a*b* (D65) of sRGB levels 0..255, in float64 from the standard's formulas."""
        encoded = rgb.astype(float) / 255
        linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
        matrix = np.array([
            [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]
        ])  # fmt: skip
        xyz = linear @ matrix.T / [0.95047, 1.0, 1.08883]
        f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
        x, y, z = np.moveaxis(f, -1, 0)
        return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)

    def statistics(self, rgb: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = self.lab(rgb).reshape(-1, 3)
        mean = np.average(values, axis=0, weights=weights.ravel())
        return mean, np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weights.ravel()))

    def test_statistics_become_those_of_the_reference(self) -> None:
        rng = np.random.default_rng(0)
        image = np.clip(rng.normal([120, 100, 90], [18, 15, 14], (60, 60, 3)), 0, 255).astype(np.uint8)
        reference = np.clip(rng.normal([150, 120, 110], [20, 17, 16], (60, 60, 3)), 0, 255).astype(np.uint8)
        reference[:20] = 0  # outside the mask: must not count
        mask = np.zeros((60, 60), np.uint8)
        mask[25:55, 5:55] = 255
        mask[40:50] //= 2
        matched = pixels.match_colour(image, reference, mask)
        mean, spread = self.statistics(matched, mask)
        wanted_mean, wanted_spread = self.statistics(reference, mask)
        np.testing.assert_allclose(mean, wanted_mean, atol=0.3)
        np.testing.assert_allclose(spread, wanted_spread, rtol=0.03)

    def test_contrast_is_bounded(self) -> None:
        rng = np.random.default_rng(0)
        flat = np.clip(rng.normal(120, 2, (60, 60, 3)), 0, 255).astype(np.uint8)
        rough = np.clip(rng.normal(120, 40, (60, 60, 3)), 0, 255).astype(np.uint8)
        mask = np.full((60, 60), 255, np.uint8)
        _, before = self.statistics(flat, mask)
        _, after = self.statistics(pixels.match_colour(flat, rough, mask), mask)
        np.testing.assert_allclose(after / before, pixels.CONTRAST_LIMITS[1], rtol=0.05)

    def test_border_carries_an_offset_inwards(self) -> None:
        reference = picture(5.0)
        mask = pixels.feathered(TRIANGLE, 4.0, reference.shape[:2])
        image = reference + np.float32([10, -20, 5])
        corrected = pixels.match_border(image, reference, mask, 25.0)
        inside = mask > 0
        np.testing.assert_allclose(corrected[inside], reference[inside], atol=0.1)


class TestPixels:
    def test_blend_mixes_by_weight(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        changed = rng.uniform(-40, 300, (20, 30, 3))
        mask = rng.integers(0, 256, (20, 30)).astype(np.uint8)
        mask[:5] = 0
        weight = mask[..., None] / 255
        expected = (1 - weight) * image + weight * np.clip(changed, 0, 255)
        found = pixels.blend(image, changed, mask)
        assert np.abs(found - expected).max() <= 0.501
        np.testing.assert_array_equal(found[:5], image[:5])

    def test_zero_insertion_balanced_is_bilinear(self) -> None:
        image = np.random.default_rng(0).uniform(0, 255, (7, 9, 3)).astype(np.float32)
        large = pixels.zero_insertion(image, 0.0)
        np.testing.assert_allclose(large[::2, ::2], image, rtol=1e-5)
        np.testing.assert_allclose(large[::2, 1:-1:2], (image[:, 1:] + image[:, :-1]) / 2, rtol=1e-5)
        corners = (image[1:, 1:] + image[1:, :-1] + image[:-1, 1:] + image[:-1, :-1]) / 4
        np.testing.assert_allclose(large[1:-1:2, 1:-1:2], corners, rtol=1e-5)

    def test_zero_insertion_unbalanced_is_a_checkerboard(self) -> None:
        large = pixels.zero_insertion(np.full((8, 8, 3), 100, np.float32), 0.01)
        np.testing.assert_allclose(large[0, :4, 0], [100, 102, 100, 102], rtol=1e-5)
        np.testing.assert_allclose(large[1, :4, 0], [102, 104.04, 102, 104.04], rtol=1e-5)

    def test_guided_filter_against_its_definition(self) -> None:
        """He et al.: in each window the line a I + b; a pixel gets the mean over the windows that hold it."""
        image = np.random.default_rng(0).uniform(0, 255, (16, 16, 3))
        found = pixels.guided_filter(image.astype(np.float32), 1, 20.0)

        def window(values: np.ndarray, row: int, column: int) -> np.ndarray:
            return values[row - 1 : row + 2, column - 1 : column + 2].reshape(9, -1)

        lines = np.zeros((16, 16, 6))
        for row in range(1, 15):
            for column in range(1, 15):
                inside = window(image, row, column)
                slope = inside.var(0) / (inside.var(0) + 400)
                lines[row, column] = np.concatenate([slope, (1 - slope) * inside.mean(0)])
        for row in range(2, 14):
            for column in range(2, 14):
                slope, offset = np.split(window(lines, row, column).mean(0), 2)
                np.testing.assert_allclose(found[row, column], slope * image[row, column] + offset, atol=0.05)

    def test_grain_goes_and_edges_stay(self) -> None:
        rng = np.random.default_rng(0)
        edge = np.repeat(np.where(np.arange(80) < 40, 60.0, 180.0)[None, :, None], 80, 0).repeat(3, 2)
        noisy = (edge + rng.normal(0, 3, edge.shape)).astype(np.float32)
        made = pixels.drop_grain(noisy, 4.0)
        assert made[:, :30].std() < 0.6 * noisy[:, :30].std()
        step = (made[:, 40] - made[:, 39]).mean()
        assert 0.95 * 120 < step < 120.5
        # An impulse of height h leaves (1 - g) h at its place, g the Gaussian's peak, times the Wiener gain.
        impulse = np.zeros((21, 21, 3), np.float32)
        impulse[10, 10] = 50
        peak = cv2.getGaussianKernel(13, 1.5).max() ** 2
        detail = (1 - peak) * 50
        expected = peak * 50 + detail * detail**2 / (detail**2 + 16)
        np.testing.assert_allclose(pixels.drop_grain(impulse, 4.0)[10, 10], expected, rtol=0.01)

    def test_rerender_at_full_resolution_changes_nothing(self) -> None:
        image = picture(6.0)
        np.testing.assert_allclose(pixels.rerender(image, 0.0, 1.0, "cubic", 0.0), image, atol=1e-3)

    @pytest.mark.parametrize("interpolation", pixels.INTERPOLATIONS)
    def test_rerender_keeps_the_picture_and_loses_the_noise(self, interpolation: str) -> None:
        clean, noisy = picture(0.0), picture(6.0)
        made = pixels.rerender(noisy, 3.0, 0.7, interpolation, 0.3)
        assert np.abs(made - clean).mean() < 0.8 * np.abs(noisy.astype(float) - clean).mean()
