"""Five-point alignment against other ways to compute it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.optimize import minimize

from masm.data.alignment import TEMPLATE, align, similarity
from masm.data.images import ImageError


def turned(points: np.ndarray, degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + shift


class TestSimilarity:
    @pytest.mark.parametrize("degrees", [-170, -30, 0, 15, 90])
    def test_finds_the_very_motion(self, degrees: float) -> None:
        target = turned(TEMPLATE, degrees, 37.0, (80.0, -4.0))
        found = similarity(TEMPLATE, target)
        np.testing.assert_allclose(TEMPLATE @ found[:, :2].T + found[:, 2], target, atol=1e-10)

    def test_is_the_least_squares_one(self) -> None:
        """Against SciPy's minimizer over angle, scale and shift."""
        rng = np.random.default_rng(0)
        target = turned(TEMPLATE, 20, 50, (90, 70)) + rng.normal(0, 3, (5, 2))

        def error(values: np.ndarray) -> float:
            degrees, scale, x, y = values
            return float(((turned(TEMPLATE, degrees, scale, (x, y)) - target) ** 2).sum())

        best = minimize(error, [0, 40, 80, 80], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
        found = similarity(TEMPLATE, target)
        np.testing.assert_allclose(
            TEMPLATE @ found[:, :2].T + found[:, 2], turned(TEMPLATE, *best.x[:2], tuple(best.x[2:])), atol=1e-4
        )

    def test_never_mirrors(self) -> None:
        found = similarity(TEMPLATE, TEMPLATE * [-1, 1])
        assert np.linalg.det(found[:, :2]) > 0

    @pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
    def test_points_that_are_no_face(self, points: np.ndarray) -> None:
        with pytest.raises(ImageError, match="landmarks"):
            similarity(TEMPLATE, points)


class TestAlign:
    @pytest.mark.parametrize("degrees", [-40, 0, 25])
    @pytest.mark.parametrize("scale", [30.0, 90.0])  # enlarged and scaled down
    def test_each_pixel_comes_from_where_the_geometry_says(self, degrees: float, scale: float) -> None:
        """In a picture of two ramps the colour of a pixel is its own place."""
        y, x = np.indices((200, 240)) + 0.5
        image = np.stack([x, y, 0 * x], axis=2).astype(np.uint8)
        landmarks = turned(TEMPLATE, degrees, scale, (120.0, 100.0))
        found = align(image, landmarks, (0.1, -0.05), 1.2, 64).astype(float)
        row, column = np.indices((64, 64)) + 0.5
        template = np.stack([column, row], axis=2) / 64 * 1.2 - 0.6 + [0.1, -0.05]
        expected = turned(template.reshape(-1, 2), degrees, scale, (120.0, 100.0)).reshape(64, 64, 2) - 0.5
        assert np.abs(found[:, :, :2] - expected).max() <= 1.2
        assert np.abs((found[:, :, :2] - expected).mean()) < 0.1

    def test_shrinks_without_aliasing(self) -> None:
        """A checkerboard of single pixels becomes an even grey."""
        board = np.uint8(255 * (np.indices((400, 400)).sum(axis=0) % 2))
        found = align(board, turned(TEMPLATE, 30, 200, (200.0, 200.0)), (0, 0), 1.2, 48)
        assert np.abs(found.astype(float) - 127.5).max() < 6

    def test_repeats_the_edges(self) -> None:
        image = np.zeros((100, 100, 3), np.uint8)
        image[:, 0] = (9, 8, 7)
        found = align(image, turned(TEMPLATE, 0, 40, (0.0, 50.0)), (0, 0), 1.6, 64)
        np.testing.assert_array_equal(found[:, :30], np.broadcast_to((9, 8, 7), (64, 30, 3)))

    def test_outside_the_image(self) -> None:
        for shift in ((-500.0, 50.0), (50.0, 900.0), (1e12, 0.0)):
            with pytest.raises(ImageError, match="outside the 100 x 80 image"):
                align(np.zeros((80, 100, 3), np.uint8), turned(TEMPLATE, 0, 40, shift), (0, 0), 1.6, 64)

    def test_template_is_the_mean_of_yunets_faces(self) -> None:
        eyes, nose, mouth = TEMPLATE[:2], TEMPLATE[2], TEMPLATE[3:]
        np.testing.assert_array_equal(eyes[0] * [-1, 1], eyes[1])
        np.testing.assert_array_equal(mouth[0] * [-1, 1], mouth[1])
        assert eyes[0, 1] < nose[1] < mouth[0, 1]
        assert cv2.contourArea(np.float32([*eyes, mouth[1], mouth[0]])) > 0
