from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from masm.data.faces import Face, YuNetDetector, find_face, prepare_photograph
from masm.data.forge import FORGERIES, NEEDS_LANDMARKS, forge, geometry, pixels, repeat
from masm.data.forge.methods import Reenact, Scene, Swap, Upsample
from masm.data.images import decode_image
from masm.errors import UserError

FIVE = np.float32([[76, 82], [116, 80], [97, 104], [80, 126], [114, 125]])
HULL = np.float32([[50, 70], [72, 66], [120, 64], [142, 68], [140, 110], [124, 142], [98, 156], [70, 144], [52, 112]])


def make_face(seed: int, landmarks: np.ndarray | None = FIVE, noise: float = 5.0) -> Face:
    """A smooth random picture with a camera's noise; what it shows does not matter to the forge."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 200, (12, 12, 3)).astype(np.float32)
    clean = cv2.resize(coarse, (192, 208), interpolation=cv2.INTER_CUBIC)
    image = np.clip(np.rint(clean + rng.normal(0, noise, clean.shape)), 0, 255).astype(np.uint8)
    return Face(image, np.float32([48, 44, 96, 120]), landmarks, f"person-{seed}", f"person-{seed}-0")


TARGETS = {
    "five landmarks": make_face(0),
    "more landmarks": make_face(1, np.concatenate([FIVE, HULL])),
    "box alone": make_face(2, None),
}
CASES = [
    (method, kind) for method in FORGERIES for kind in TARGETS if method not in NEEDS_LANDMARKS or kind != "box alone"
]


def donor_for(face: Face) -> Face:
    moved = None if face.landmarks is None else (face.landmarks * 1.07 + [3.3, -5.1]).astype(np.float32)
    return replace(make_face(9), landmarks=moved)


@pytest.mark.parametrize(("method", "kind"), CASES)
class TestEveryMethod:
    def test_only_the_masked_region_changes(self, method: str, kind: str) -> None:
        face = TARGETS[kind]
        before = face.image.copy()
        for seed in range(5):
            made = forge(method, face, np.random.default_rng(seed), donor_for(face))
            assert made.image.dtype == made.mask.dtype == np.uint8
            assert made.mask.shape == face.image.shape[:2]
            outside = made.mask == 0
            np.testing.assert_array_equal(made.image[outside], face.image[outside])
            changed = (made.image != face.image).any(axis=2)
            assert changed[made.mask == 255].mean() > 0.8
            assert 0.05 < (made.mask > 127).mean() < 0.4
        np.testing.assert_array_equal(face.image, before)

    def test_the_generator_decides(self, method: str, kind: str) -> None:
        face = TARGETS[kind]
        first, again, other = (forge(method, face, np.random.default_rng(seed), donor_for(face)) for seed in (4, 4, 5))
        np.testing.assert_array_equal(first.image, again.image)
        np.testing.assert_array_equal(first.mask, again.mask)
        assert first.parameters == again.parameters
        assert (first.image != other.image).any()

    def test_repeats_from_recorded_parameters(self, method: str, kind: str) -> None:
        face = TARGETS[kind]
        made = forge(method, face, np.random.default_rng(6), donor_for(face))
        assert made.parameters["method"] == method
        assert {type(value) for value in made.parameters.values()} <= {float, int, str}
        again = repeat(json.loads(json.dumps(made.parameters)), face, donor_for(face))
        np.testing.assert_array_equal(made.image, again.image)
        np.testing.assert_array_equal(made.mask, again.mask)

    def test_noise_is_altered_inside(self, method: str, kind: str) -> None:
        """The one honest trace: white camera noise does not survive, in most draws, as it was."""
        face = replace(TARGETS[kind], image=make_face(3).image)
        donor = donor_for(face)
        ratios = []
        for seed in range(12):
            made = forge(method, face, np.random.default_rng(seed), donor)
            core = made.mask == 255
            ratios.append(residual(made.image)[core].std() / residual(face.image)[core].std())
        assert np.median(ratios) < 0.9


@pytest.mark.parametrize("method", FORGERIES)
def test_colour_stays_plausible(shared: Path, method: str) -> None:
    face, donor = load(shared, "001_03"), load(shared, "033_08")
    for seed in range(5):
        made = forge(method, face, np.random.default_rng(seed), donor)
        core = made.mask == 255
        shift = made.image[core].mean(axis=0) - face.image[core].mean(axis=0)
        assert np.abs(shift).max() < 10


def residual(image: np.ndarray) -> np.ndarray:
    """What the diagonal second difference leaves of an image: mostly noise."""
    grey = image.mean(axis=2)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 4
    return cv2.filter2D(grey, -1, kernel)


class TestMistakes:
    @pytest.mark.parametrize("method", sorted(NEEDS_LANDMARKS))
    def test_landmarks_are_needed(self, method: str) -> None:
        with pytest.raises(UserError, match="person-2-0 has no landmarks"):
            forge(method, TARGETS["box alone"], np.random.default_rng(0), TARGETS["five landmarks"])

    def test_the_donor_needs_landmarks_too(self) -> None:
        with pytest.raises(UserError, match="person-2-0 has no landmarks"):
            forge("swap", TARGETS["five landmarks"], np.random.default_rng(0), TARGETS["box alone"])

    def test_a_swap_needs_a_donor(self) -> None:
        with pytest.raises(UserError, match="needs a donor"):
            forge("swap", TARGETS["five landmarks"], np.random.default_rng(0))

    def test_unknown_method(self) -> None:
        with pytest.raises(UserError, match="unknown forgery 'swop'"):
            forge("swop", TARGETS["five landmarks"], np.random.default_rng(0))


class TestGeometry:
    def test_similarity_is_the_least_squares_one(self) -> None:
        rng = np.random.default_rng(0)
        source, target = rng.normal(size=(2, 9, 2)) * 30
        x, y = source.T
        one, zero = np.ones(9), np.zeros(9)
        # [a, b, tx, ty] of x' = a x - b y + tx, y' = b x + a y + ty
        design = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        a, b, tx, ty = np.linalg.lstsq(design, target.T.ravel(), rcond=None)[0]
        np.testing.assert_allclose(geometry.similarity(source, target), [[a, -b, tx], [b, a, ty]], atol=1e-9)

    def test_field_has_its_values_at_the_points_and_fades(self) -> None:
        points = np.array([[20, 30], [60, 35], [40, 70]])
        wanted = np.array([[2.0, -1.0], [-3.0, 0.5], [0.0, 4.0]])
        field = geometry.smooth_field(points, wanted, 12.0, (100, 160))
        np.testing.assert_allclose(field[points[:, 1], points[:, 0]], wanted, atol=0.02)
        assert np.abs(field[:, 130:]).max() < 0.01
        distance = np.square(np.array([50, 50]) - points).sum(1)
        between = np.square(points[:, None] - points[None]).sum(-1)
        weights = np.linalg.inv(np.exp(-between / 288) + geometry.RIDGE * np.eye(3)) @ wanted
        np.testing.assert_allclose(field[50, 50], np.exp(-distance / 288) @ weights, rtol=1e-4)

    def test_nothing_moves_without_displacement(self) -> None:
        field = geometry.smooth_field(FIVE, np.zeros((5, 2)), 15.0, (64, 64))
        np.testing.assert_array_equal(field, 0)
        image = make_face(0).image
        grid = geometry.transformed_grid(np.eye(2, 3), image.shape[:2])
        for interpolation in pixels.INTERPOLATIONS.values():
            np.testing.assert_array_equal(geometry.sample(image, grid, interpolation), image)

    def test_five_landmarks_correspond_by_a_similarity(self) -> None:
        turn = geometry.motion(np.array([90, 90]), 12, 1.2, np.array([4, -7]))
        theirs = FIVE @ turn[:, :2].T + turn[:, 2]
        places = geometry.correspondence(FIVE, theirs, 15.0, (208, 192))
        for x, y in [(10, 15), (96, 104), (180, 200)]:
            np.testing.assert_allclose(places[y, x], turn @ [x, y, 1], atol=0.01)

    def test_more_landmarks_correspond_one_by_one(self) -> None:
        ours = np.concatenate([FIVE, HULL])
        theirs = ours + np.random.default_rng(0).uniform(-4, 4, ours.shape)
        places = geometry.correspondence(ours, theirs, 14.0, (208, 192))
        found = places[ours[:, 1].astype(int), ours[:, 0].astype(int)]
        assert np.abs(found - theirs).max() < 0.3
        other = geometry.correspondence(ours, theirs[:8], 14.0, (208, 192))
        matrix = geometry.similarity(ours[:5], theirs[:5])
        np.testing.assert_allclose(other[100, 100], matrix @ [100, 100, 1], atol=0.01)

    @pytest.mark.parametrize("kind", TARGETS)
    def test_outline_lies_in_the_box_and_holds_eyes_and_mouth(self, kind: str) -> None:
        face = TARGETS[kind]
        polygon = geometry.outline(face, 0.95).astype(np.float32)
        x, y, width, height = face.box
        assert (polygon.min(0) > [x - 6, y - 6]).all()
        assert (polygon.max(0) < [x + width + 6, y + height + 6]).all()
        for point in FIVE:
            assert cv2.pointPolygonTest(polygon, point.tolist(), measureDist=False) > 0


class TestReenact:
    STILL = Reenact(1.0, 0.03, 0, 0, 0, 0, 0, 0, "cubic", grain=0.0, resolution=1.0, sharpening=0.0)

    def test_identity_without_displacement(self) -> None:
        face = TARGETS["five landmarks"]
        same = self.STILL.render(Scene(face, self.STILL.mask(face), None))
        np.testing.assert_allclose(same, face.image, atol=1e-3)

    def test_landmarks_arrive_where_the_expression_wants_them(self) -> None:
        image = np.zeros((208, 192, 3), np.uint8)
        mouth = FIVE[3]
        cv2.circle(image, np.rint(mouth).astype(int).tolist(), 3, (255, 255, 255), -1)
        face = replace(TARGETS["five landmarks"], image=image)
        smiling = replace(self.STILL, smile=0.1, lift=0.05, turn=0.05)
        moved = smiling.render(Scene(face, smiling.mask(face), None))[..., 0]
        rows, columns = np.indices(moved.shape)
        found = np.array([(moved * columns).sum(), (moved * rows).sum()]) / moved.sum()
        between = np.linalg.norm(FIVE[1] - FIVE[0])
        np.testing.assert_allclose(found, mouth + between * np.array([-0.1 + 0.05, -0.05]), atol=0.5)


@pytest.mark.parametrize("kernel", ["nearest", "zero_insertion", "bicubic"])
def test_upsampling_keeps_the_picture(kernel: str) -> None:
    face = make_face(6, noise=0.0)
    method = Upsample(1.0, 0.03, 2.0, kernel, imbalance=0.0, sharpening=0.3)
    made = method.render(Scene(face, method.mask(face), None))
    assert np.abs(made - face.image)[8:-8, 8:-8].mean() < 3.0


class TestSwap:
    def test_shows_the_donor(self, shared: Path) -> None:
        """Inside the mask a swap looks like the donor's aligned face, not like the target's."""
        faces = [load(shared, name) for name in ("001_03", "005_08", "012_03", "033_08")]
        for face, donor in zip(faces, faces[1:] + faces[:1], strict=True):
            made = forge("swap", face, np.random.default_rng(1), donor)
            assert face.landmarks is not None
            assert donor.landmarks is not None
            matrix, _ = cv2.estimateAffinePartial2D(face.landmarks, donor.landmarks, method=cv2.LMEDS)
            size = face.image.shape[1::-1]
            aligned = cv2.warpAffine(donor.image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            core = made.mask > 200
            to_donor, to_target = (
                np.corrcoef(made.image[core].mean(1), other[core].mean(1))[0, 1] for other in (aligned, face.image)
            )
            assert to_donor > 0.9
            assert to_donor > to_target + 0.05

    def test_swapping_a_face_with_itself_keeps_it(self) -> None:
        face = TARGETS["five landmarks"]
        exact = Swap(1.0, 0.03, "cubic", grain=0.0, resolution=1.0, sharpening=0.0)
        same = exact.render(Scene(face, exact.mask(face), face))
        assert np.abs(same - face.image).mean() < 0.2


def load(shared: Path, name: str) -> Face:
    image = decode_image((shared / "faces" / "london" / f"{name}.jpg").read_bytes())
    found = find_face(image, YuNetDetector(shared / "models" / "face_detection_yunet_2023mar.onnx"))
    assert found is not None
    return prepare_photograph(image, found, 140, name[:3], name)
