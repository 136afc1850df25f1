from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from masm.data.alignment import TEMPLATE
from masm.data.faces import (
    CascadeDetector,
    CropProfile,
    Detection,
    FaceCropper,
    Jitter,
    YuNetDetector,
    crop,
    crop_landmarks,
    draw_jitter,
    find_face,
    make_detector,
    make_profile,
    prepare_photograph,
)
from masm.data.images import ImageError, decode_image
from masm.errors import UserError

PROFILE = CropProfile("given", 64, 1.3, None)
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"  # as OpenCV publishes it


@pytest.fixture
def image() -> np.ndarray:
    """A smooth ramp in x and y with noise in the third channel: pixels tell where they come from."""
    y, x = np.indices((120, 160))
    noise = np.random.default_rng(0).integers(0, 256, (120, 160))
    return np.stack([x, y, noise], axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(shared: Path) -> Path:
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


class TestCrop:
    def brute_force(self, image: np.ndarray, left: int, top: int, side: int, size: int) -> np.ndarray:
        """Each output pixel is the area-weighted mean of the source pixels under it, edges repeated."""
        height, width = image.shape[:2]

        def shares(position: int) -> list[tuple[int, float]]:
            start, end = position * side / size, (position + 1) * side / size
            cells = range(int(start), min(int(np.ceil(end)), side))
            return [(cell, min(cell + 1, end) - max(cell, start)) for cell in cells]

        result = np.zeros((size, size, 3))
        for row in range(size):
            for column in range(size):
                total = 0.0
                for y, share_y in shares(row):
                    for x, share_x in shares(column):
                        pixel = image[np.clip(top + y, 0, height - 1), np.clip(left + x, 0, width - 1)]
                        result[row, column] += share_y * share_x * pixel
                        total += share_y * share_x
                result[row, column] /= total
        return result

    @pytest.mark.parametrize("box", [(50, 30, 40, 50), (-10, -20, 60, 40), (120, 90, 50, 60)])
    def test_shrinks_by_area_and_repeats_the_edges(self, image: np.ndarray, box: tuple[int, ...]) -> None:
        profile = replace(PROFILE, size=24)
        x, y, width, height = box
        side = 1.3 * max(width, height)
        left, top = round(x + width / 2 - side / 2), round(y + height / 2 - side / 2)
        expected = self.brute_force(image, left, top, round(side), 24)
        found = crop(image, np.float32(box), profile)
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1.0

    def test_is_an_exact_cut_at_the_same_scale(self, image: np.ndarray) -> None:
        found = crop(image, np.float32([40, 30, 30, 40]), replace(PROFILE, margin=1.6))
        np.testing.assert_array_equal(found, image[18:82, 23:87])

    def test_enlarges_with_the_centres_in_place(self, image: np.ndarray) -> None:
        found = crop(image, np.float32([40, 30, 20, 20]), replace(PROFILE, margin=1.6))
        expected = 34 + (np.arange(64) + 0.5) / 2 - 0.5  # of the square 34..66
        assert np.abs(found[32, 2:-2, 0] - expected[2:-2]).max() <= 1.0

    def test_jitter_moves_scales_and_mirrors(self, image: np.ndarray) -> None:
        box, profile = np.float32([60, 40, 40, 40]), replace(PROFILE, margin=1.6)
        moved = crop(image, box, profile, Jitter(0.125, -0.0625, 1.0, flip=False))
        np.testing.assert_array_equal(moved, image[24:88, 56:120])
        mirrored = crop(image, box, profile, Jitter(0.125, -0.0625, 1.0, flip=True))
        np.testing.assert_array_equal(mirrored, moved[:, ::-1])
        smaller = crop(image, box, replace(profile, size=32), Jitter(0.0, 0.0, 0.5, flip=False))
        np.testing.assert_array_equal(smaller, image[44:76, 64:96])

    def test_jitter_is_drawn_from_the_generator(self) -> None:
        drawn = [draw_jitter(np.random.default_rng(3)) for _ in range(2)]
        assert drawn[0] == drawn[1]
        rng = np.random.default_rng(0)
        many = [draw_jitter(rng, shift=0.1, scale=0.2) for _ in range(200)]
        assert 0.08 < max(abs(each.shift_x) for each in many) <= 0.1
        assert 0.15 < max(abs(each.scale - 1) for each in many) <= 0.2
        assert 60 < sum(each.flip for each in many) < 140

    @pytest.mark.parametrize("box", [(10, 10, 0, 5), (10, np.nan, 5, 5), (500, 10, 20, 20), (10, -300, 20, 20)])
    def test_refuses_a_box_without_pixels(self, image: np.ndarray, box: tuple[float, ...]) -> None:
        with pytest.raises(ImageError, match="face box"):
            crop(image, np.float32(box), PROFILE)


class TestAlignedCrop:
    PROFILE = replace(PROFILE, alignment="landmarks", margin=1.5)
    LANDMARKS = TEMPLATE * 40 + [80, 60]  # of a face box with the centre 80, 60 and the longer side 40

    def test_upright_it_is_the_plain_square(self, image: np.ndarray) -> None:
        smooth = cv2.GaussianBlur(image, (0, 0), 3)
        box = np.float32([65, 40, 30, 40])
        for jitter in (None, Jitter(0.1, -0.05, 0.9, flip=True)):
            plain = crop(smooth, box, replace(self.PROFILE, alignment="square"), jitter)
            aligned = crop(smooth, box, self.PROFILE, jitter, self.LANDMARKS)
            assert np.abs(plain.astype(int) - aligned).mean() < 0.6

    def test_needs_landmarks(self, image: np.ndarray) -> None:
        with pytest.raises(ImageError, match="no landmarks"):
            crop(image, np.float32([60, 40, 40, 40]), self.PROFILE)

    def test_a_mask_goes_where_its_image_goes(self, image: np.ndarray) -> None:
        mask = np.uint8(255 * (image[:, :, 0] > 75))
        cut = crop(mask, np.float32([60, 40, 40, 40]), self.PROFILE, None, self.LANDMARKS)
        seen = crop(image, np.float32([60, 40, 40, 40]), self.PROFILE, None, self.LANDMARKS)[:, :, 0]
        assert cut.shape == (64, 64)
        assert (cut[seen > 77] == 255).all()
        assert (cut[seen < 74] == 0).all()


@pytest.mark.parametrize("alignment", ["square", "landmarks"])
@pytest.mark.parametrize("jitter", [None, Jitter(0.03, -0.04, 0.95, flip=True)], ids=["still", "mirrored"])
def test_landmarks_of_the_crop_are_where_it_shows_them(alignment: str, jitter: Jitter | None) -> None:
    profile = replace(PROFILE, size=128, margin=1.5, alignment=alignment)
    turned = TEMPLATE @ np.array([[0.9, 0.3], [-0.3, 0.9]])
    landmarks, box = np.float32(turned * 50 + [80, 60]), np.float32([60, 35, 40, 50])
    placed = crop_landmarks(box, profile, jitter, landmarks)
    assert placed is not None
    mirrored = [1, 0, 2, 4, 3] if jitter is not None and jitter.flip else range(5)
    for point, name in zip(placed, mirrored, strict=True):
        y, x = np.mgrid[:120, :160] + 0.5
        spot = 255 * np.exp(-((x - landmarks[name, 0]) ** 2 + (y - landmarks[name, 1]) ** 2) / 8)
        shown = crop(np.uint8(np.rint(spot)), box, profile, jitter, landmarks).astype(float)
        rows, columns = np.mgrid[:128, :128] + 0.5
        seen = np.array([(columns * shown).sum(), (rows * shown).sum()]) / shown.sum()
        np.testing.assert_allclose(point, seen, atol=0.3)
    assert crop_landmarks(box, profile, jitter, None) is None


class TestCropper:
    def test_given_takes_the_whole_image_whatever_the_margin_and_alignment(self, image: np.ndarray) -> None:
        square = image[:120, :120]
        cropper = FaceCropper(replace(PROFILE, size=60, alignment="landmarks"))
        face = find_face(square, cropper)
        assert face is not None
        assert face.box.tolist() == [0, 0, 120, 120]
        expected = square.reshape(60, 2, 60, 2, 3).mean(axis=(1, 3))
        assert np.abs(cropper.cut(square, face) - expected).max() <= 1

    def test_aligned_faces_have_level_eyes_however_the_photograph_was_turned(
        self, shared: Path, weights: Path
    ) -> None:
        cropper = FaceCropper(make_profile("yunet", 224, 1.6, weights, "landmarks"), weights)
        square = replace(cropper.profile, alignment="square")
        slopes, sides = [], []
        for photograph in sorted((shared / "faces" / "london").glob("*_03.jpg"))[::12]:
            image = cv2.resize(decode_image(photograph.read_bytes()), (640, 640), interpolation=cv2.INTER_AREA)
            for angle in (-25, 0, 25):
                turn = cv2.getRotationMatrix2D((320, 320), angle, 1.0)
                turned = cv2.warpAffine(image, turn, (640, 640), borderMode=cv2.BORDER_REPLICATE)
                face = find_face(turned, cropper)
                assert face is not None
                again = find_face(cropper.cut(turned, face), cropper)
                assert again is not None
                assert again.landmarks is not None
                slopes.append(np.degrees(np.arctan2(*(again.landmarks[1] - again.landmarks[0])[::-1])))
                if angle == 0:
                    plain = find_face(crop(turned, face.box, square), cropper)
                    assert plain is not None
                    sides.append(again.box[2:].max() / plain.box[2:].max())
        assert np.abs(slopes).max() < 10
        assert np.mean(np.abs(slopes)) < 2.5
        assert np.mean(sides) == pytest.approx(1, rel=0.06)


class TestProfile:
    def test_hash_changes_with_every_field(self) -> None:
        others = {
            "detector": "cascade",
            "size": 96,
            "margin": 1.31,
            "detector_sha256": "00",
            "alignment": "landmarks",
            "frames": 32,
        }
        hashes = {replace(PROFILE, **{field: value}).hash for field, value in others.items()}
        assert len(hashes | {PROFILE.hash}) == len(others) + 1
        assert replace(PROFILE).hash == PROFILE.hash

    def test_hash_changes_with_the_cropping_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = PROFILE.hash
        monkeypatch.setattr("masm.data.faces.CROP_VERSION", 10_000)
        assert PROFILE.hash != before

    def test_mistakes_are_the_users(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="unknown face detector 'yunett'"):
            make_profile("yunett", 64, 1.3)
        with pytest.raises(UserError, match=r"missing\.onnx"):
            make_profile("yunet", 64, 1.3, tmp_path / "missing.onnx")
        with pytest.raises(UserError, match="finds no faces"):
            make_detector(PROFILE)

    def test_a_file_that_is_no_network(self, tmp_path: Path) -> None:
        junk = tmp_path / "junk.onnx"
        junk.write_bytes(b"junk" * 100)
        profile = make_profile("yunet", 64, 1.3, junk)
        with pytest.raises(UserError, match="not a YuNet model"):
            make_detector(profile, junk)
        with pytest.raises(UserError, match="sha256 differs"):
            make_detector(replace(profile, detector_sha256="00"), junk)


SLIVERS = [(1, 1), (2, 3), (1, 640), (3000, 1), (1, 2**20), (10, 10), (11, 640), (12, 100), (24, 64), (32, 320)]


class TestDetection:
    def test_largest_face_wins(self, image: np.ndarray) -> None:
        small = Detection(np.float32([0, 0, 5, 5]), None, 0.99)
        large = Detection(np.float32([0, 0, 9, 9]), None, 0.8)

        class Two:
            def detect(self, image: np.ndarray) -> list[Detection]:
                return [small, large]

        assert find_face(image, Two()) is large

    def test_nothing_to_find(self, image: np.ndarray, weights: Path) -> None:
        assert find_face(image, YuNetDetector(weights)) is None
        assert find_face(np.full((50, 50, 3), 128, np.uint8), CascadeDetector()) is None

    @pytest.mark.parametrize("shape", SLIVERS)
    def test_tiny_images_and_strips_have_no_face(self, shape: tuple[int, int]) -> None:
        assert find_face(np.full((*shape, 3), 128, np.uint8), CascadeDetector()) is None

    @pytest.mark.parametrize("shape", SLIVERS)
    def test_nor_by_yunet(self, weights: Path, shape: tuple[int, int]) -> None:
        assert find_face(np.full((*shape, 3), 128, np.uint8), YuNetDetector(weights)) is None

    def test_yunet_on_photographs(self, shared: Path, weights: Path) -> None:
        detector = make_detector(make_profile("yunet", 96, 1.3, weights), weights)
        errors = []
        for photograph in sorted((shared / "faces" / "london").glob("*_03.jpg"))[::6]:
            found = detector.detect(decode_image(photograph.read_bytes()))
            assert len(found) == 1
            lines = photograph.with_suffix(".tem").read_text().splitlines()[1:3]
            pupils = np.array([[float(number) for number in line.split()] for line in lines])
            assert found[0].landmarks is not None
            between = np.linalg.norm(pupils[1] - pupils[0])
            errors.append(np.linalg.norm(found[0].landmarks[:2] - pupils, axis=1).mean() / between)
            assert_is_a_face(found[0])
        assert np.mean(errors) < 0.08
        assert np.max(errors) < 0.12

    def test_profile_records_the_published_file(self, weights: Path) -> None:
        assert make_profile("yunet", 96, 1.3, weights).detector_sha256 == YUNET_SHA256

    def test_both_detectors_agree_on_the_crop(self, shared: Path, weights: Path) -> None:
        for photograph in sorted((shared / "faces" / "london").glob("*_08.jpg"))[:8]:
            image = decode_image(photograph.read_bytes())
            boxes = [find_face(image, each) for each in (YuNetDetector(weights), CascadeDetector())]
            (x, y, width, height), (other_x, other_y, other_width, other_height) = (
                found.box for found in boxes if found is not None
            )
            side, other_side = max(width, height), max(other_width, other_height)
            assert 0.8 < other_side / side < 1.15
            assert abs(x + width / 2 - other_x - other_width / 2) < 0.1 * side
            assert abs(y + height / 2 - other_y - other_height / 2) < 0.15 * side


def assert_is_a_face(found: Detection) -> None:
    """The five landmarks lie in the box, left of right and eyes over nose over mouth."""
    assert found.landmarks is not None
    left_eye, right_eye, nose, left_mouth, right_mouth = found.landmarks
    x, y, width, height = found.box
    assert ((found.landmarks > [x, y]) & (found.landmarks < [x + width, y + height])).all()
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


class TestPreparePhotograph:
    def detection(self) -> Detection:
        box = np.float32([400, 300, 150, 200])
        points = np.float32([[440, 370], [510, 370], [475, 410], [450, 450], [500, 450]])
        return Detection(box, points, 0.9)

    def test_box_and_landmarks_follow_the_pixels(self) -> None:
        image = np.zeros((900, 1200, 3), np.uint8)
        found = self.detection()
        assert found.landmarks is not None
        for x, y in found.landmarks.astype(int):
            image[y - 6 : y + 6, x - 6 : x + 6] = 255
        face = prepare_photograph(image, found, 100, "anna", "anna-1")
        assert face.box[2:].max() == pytest.approx(100, abs=1)
        assert face.image.shape[:2] == pytest.approx((200, 200), abs=2)
        assert face.landmarks is not None
        for x, y in face.landmarks.astype(int):
            patch = face.image[y - 6 : y + 6, x - 6 : x + 6, 0].astype(float)
            rows, columns = np.indices(patch.shape) + 0.5
            centre = np.array([(patch * columns).sum(), (patch * rows).sum()]) / patch.sum()
            assert np.abs(centre - 6).max() < 1.5
        assert (face.identity, face.photograph) == ("anna", "anna-1")

    def test_crop_shows_the_same_as_from_the_whole_photograph(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
        image = cv2.resize(noise, (1200, 900), interpolation=cv2.INTER_CUBIC)
        face = prepare_photograph(image, self.detection(), 100, "anna", "anna-1")
        whole = crop(image, self.detection().box, PROFILE).astype(float)
        part = crop(face.image, face.box, PROFILE).astype(float)
        assert np.abs(whole - part).mean() < 0.1 * np.abs(whole - whole.mean()).mean()

    def test_a_face_at_the_border_keeps_what_there_is(self) -> None:
        image = np.zeros((350, 480, 3), np.uint8)
        face = prepare_photograph(image, self.detection(), 100, "anna", "anna-1")
        assert face.image.shape[0] < 150
        assert face.box[2:].max() == pytest.approx(100, abs=1)

    def test_small_faces_are_not_enlarged(self) -> None:
        image = np.zeros((900, 1200, 3), np.uint8)
        found = replace(self.detection(), landmarks=None)
        face = prepare_photograph(image, found, 400, "anna", "anna-1")
        assert face.box[2:].max() == pytest.approx(200, abs=1)
        assert face.landmarks is None
