"""Drawn faces: reproducible, of recognisable persons, with landmarks that fit the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from masm.data.anatomy import sample_person
from masm.data.canvas import Canvas, gaussians
from masm.data.faces import Face
from masm.data.portrait import skin_texture
from masm.data.procedural import draw_face

LEFT_EYE, RIGHT_EYE, NOSE, LEFT_MOUTH, RIGHT_MOUTH = range(5)
SIZE = 128


@pytest.fixture(scope="module")
def album() -> list[list[Face]]:
    """Two photographs of each of twenty people."""
    return [[draw_face(5, person, photograph, SIZE) for photograph in (0, 1)] for person in range(20)]


def test_same_seed_gives_the_same_bytes(album: list[list[Face]]) -> None:
    again = draw_face(5, 3, 1, SIZE)
    assert again.image.tobytes() == album[3][1].image.tobytes()
    assert again.landmarks.tobytes() == album[3][1].landmarks.tobytes()
    assert (again.identity, again.photograph) == ("drawn-00003", "drawn-00003-1")


@pytest.mark.parametrize("other", [(6, 3, 1), (5, 4, 1), (5, 3, 2)], ids=["seed", "person", "photograph"])
def test_each_part_of_the_seed_matters(other: tuple[int, int, int]) -> None:
    assert not np.array_equal(draw_face(5, 3, 1, 64).image, draw_face(*other, 64).image)


def test_image_is_a_well_exposed_picture(album: list[list[Face]]) -> None:
    for face in (photograph for person in album for photograph in person):
        assert face.image.shape == (SIZE, SIZE, 3)
        assert face.image.dtype == np.uint8
        x, y, width, height = face.box.astype(int)
        inside = face.image[y : y + height, x : x + width]
        assert 25 < inside.mean() < 225
        assert inside.std() > 15


def test_landmarks_lie_in_order_inside_image_and_box(album: list[list[Face]]) -> None:
    for face in (photograph for person in album for photograph in person):
        points = face.landmarks
        assert points.shape == (76, 2)
        assert points.dtype == np.float32
        assert (points >= 0).all()
        assert (points <= SIZE - 1).all()
        x, y, width, height = face.box
        assert (points[:5] > [x, y]).all()
        assert (points[:5] < [x + width, y + height]).all()
        assert points[LEFT_EYE, 0] < points[NOSE, 0] < points[RIGHT_EYE, 0]
        assert points[LEFT_MOUTH, 0] < points[RIGHT_MOUTH, 0]
        assert points[:2, 1].max() < points[NOSE, 1] < points[3:5, 1].min()


def test_landmarks_scale_with_the_image() -> None:
    small, large = draw_face(1, 2, 3, 96), draw_face(1, 2, 3, 192)
    assert np.abs(2 * (small.landmarks + 0.5) - (large.landmarks + 0.5)).max() < 1.5
    shrunk = cv2.resize(large.image, (96, 96), interpolation=cv2.INTER_AREA)
    # The finest texture and the background's grain are drawn anew for each size; the scene is the same.
    blurred = [cv2.GaussianBlur(image, (0, 0), 3).astype(float) for image in (shrunk, small.image)]
    x, y, width, height = small.box.astype(int)
    difference = np.abs(blurred[0] - blurred[1])[y : y + height, x : x + width]
    assert difference.mean() < 6


def test_eyes_and_nostrils_are_where_the_landmarks_say(album: list[list[Face]]) -> None:
    """The pupil is darker than the cheek below it: the picture was warped as the landmarks were."""
    darker = 0
    for face in (photograph for person in album for photograph in person):
        grey = face.image.mean(axis=2)
        span = np.linalg.norm(face.landmarks[RIGHT_EYE] - face.landmarks[LEFT_EYE])
        for eye in face.landmarks[:2]:
            darker += _darkest(grey, eye, 0.1 * span) < _darkest(grey, eye + np.array([0, 0.5 * span]), 0.1 * span)
    assert darker >= 0.9 * 4 * len(album)


def test_two_photographs_of_a_person_agree_more_than_two_persons(album: list[list[Face]]) -> None:
    features = np.array([[_shape_and_skin(photograph) for photograph in person] for person in album])
    features /= features.reshape(-1, features.shape[-1]).std(axis=0)
    distance = np.linalg.norm(features[:, None, 0] - features[None, :, 1], axis=-1)
    same, different = np.diag(distance), distance[~np.eye(len(album), dtype=bool)]
    assert np.median(same) < 0.75 * np.median(different)


def test_skin_texture_belongs_to_the_person() -> None:
    person = sample_person(np.random.default_rng(0))
    textures = [skin_texture(np.random.default_rng(seed), 128, person) for seed in (1, 1, 2)]
    assert np.array_equal(textures[0], textures[1])
    assert abs(np.corrcoef(textures[0].ravel(), textures[2].ravel())[0, 1]) < 0.3
    fine = textures[0] - cv2.GaussianBlur(textures[0], (0, 0), 2)
    assert fine.std() > 0.01  # high frequencies exist


def test_gaussians_match_their_formula() -> None:
    bumps = np.array([[0.5, 0.1, -0.2, 0.3, 0.4], [-1.0, 0.0, 0.5, 0.2, 0.1]])
    u, v = np.linspace(-1, 1, 7), np.linspace(-1, 1, 5)
    expected = np.array(
        [[sum(h * np.exp(-((x - a) ** 2) / (2 * s**2) - (y - b) ** 2 / (2 * t**2)) for h, a, b, s, t in bumps)
          for x in u] for y in v]
    )  # fmt: skip
    assert np.allclose(gaussians(bumps, u.astype(np.float32), v.astype(np.float32)), expected, atol=1e-6)


def test_canvas_fills_the_area_of_a_polygon() -> None:
    canvas = Canvas(200)
    square = np.array([[-0.5, -0.25], [0.5, -0.25], [0.5, 0.25], [-0.5, 0.25]])
    assert canvas.mask(square).sum() == pytest.approx(0.5 * canvas.unit**2, rel=0.08)
    assert canvas.mask(square, softness=0.05).sum() == pytest.approx(0.5 * canvas.unit**2, rel=0.08)
    canvas.fill(square, (1.0, 0.5, 0.25), opacity=0.5)
    assert canvas.colour[100, 100] == pytest.approx([0.5, 0.25, 0.125])
    assert canvas.colour[20, 20] == pytest.approx([0, 0, 0])


def _darkest(grey: np.ndarray, centre: np.ndarray, radius: float) -> float:
    x, y = np.round(centre).astype(int)
    reach = max(round(radius), 1)
    return float(grey[y - reach : y + reach + 1, x - reach : x + reach + 1].min())


def _shape_and_skin(face: Face) -> np.ndarray:
    """Proportions that survive pose and expression roughly, and the cheeks' chromaticity."""
    points = face.landmarks
    eyes = np.linalg.norm(points[RIGHT_EYE] - points[LEFT_EYE])
    nose = (points[NOSE, 1] - points[:2, 1].mean()) / eyes
    mouth = (points[3:5, 1].mean() - points[NOSE, 1]) / eyes
    eye_width = np.linalg.norm(points[44] - points[40]) / eyes
    cheek = (points[:2] + points[3:5]) / 2
    x, y = np.round(cheek.mean(axis=0)).astype(int)
    patch = face.image[y - 12 : y + 3, x - 12 : x + 12].reshape(-1, 3).mean(axis=0)
    return np.array([nose, mouth, eye_width, patch[0] / patch.sum(), patch[2] / patch.sum()])
