"""Faces from video files with real people in them, made here from photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from masm.data.extract import Extraction, extract
from masm.data.faces import CropProfile, Detection, FaceCropper, YuNetDetector, crop, find_face, make_profile
from masm.data.importers.photograph import Unusable
from masm.data.procedural import draw_face
from masm.data.video import spread
from tests.data.videos import decode_all, people, scene, turn_by_metadata, write_video

FRAMES = 8
COUNT = 40


@pytest.fixture(scope="module")
def weights(shared: Path) -> Path:
    return shared / "models" / "face_detection_yunet_2023mar.onnx"


@pytest.fixture(scope="module")
def profile(weights: Path) -> CropProfile:
    return make_profile("yunet", 64, 1.3, weights, frames=FRAMES)


@pytest.fixture(scope="module")
def pictures(shared: Path) -> list[np.ndarray]:
    return people(shared, 2)


@pytest.fixture(scope="module")
def moving(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """One person who moves to the right."""
    return [scene({(2 * number, 0): pictures[0]}, width=480) for number in range(COUNT)]


@pytest.fixture(scope="module")
def pair(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """A small face at the right in all frames, and at the left a larger one in the first six of ten."""
    near, far = pictures[0], cv2.resize(pictures[1], (200, 200), interpolation=cv2.INTER_AREA)
    return [scene({(420, 60): far} | ({(number, 0): near} if number < 0.6 * COUNT else {})) for number in range(COUNT)]


def centres(found: Extraction) -> list[float]:
    return [float(frame.box[0] + frame.box[2] / 2) for frame in found.frames]


class TestOnePerson:
    def test_crops_are_those_of_decoding_everything(
        self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        path = write_video(tmp_path / "a.mp4", moving)
        found = extract([path], [], profile, weights)
        assert [frame.frame_index for frame in found.frames] == spread(COUNT, FRAMES)
        assert found.failures == []
        everything, detector = decode_all(path), YuNetDetector(weights)
        for frame in found.frames:
            face = find_face(everything[frame.frame_index], detector)
            assert face is not None
            np.testing.assert_array_equal(frame.box, face.box)
            np.testing.assert_array_equal(frame.landmarks, face.landmarks)
            np.testing.assert_array_equal(frame.image, crop(everything[frame.frame_index], face.box, profile))
            assert (frame.track_id, frame.mask) == (0, None)
        assert np.diff(centres(found)) == pytest.approx(2 * COUNT / FRAMES, abs=4)

    def test_aligned(self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", moving)
        aligned = replace(profile, alignment="landmarks")
        for frame in extract([path], [], aligned, weights).frames:
            expected = crop(decode_all(path)[frame.frame_index], frame.box, aligned, landmarks=frame.landmarks)
            np.testing.assert_array_equal(frame.image, expected)

    def test_variable_frame_rate_is_spread_by_frames(
        self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        times = np.cumsum([10] * (COUNT // 2) + [200] * (COUNT // 2)).tolist()
        found = extract([write_video(tmp_path / "a.mp4", moving, times=times)], [], profile, weights)
        assert [frame.frame_index for frame in found.frames] == spread(COUNT, FRAMES)
        assert np.diff(centres(found)) == pytest.approx(2 * COUNT / FRAMES, abs=4)

    def test_turned_by_the_camera(
        self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        lying = [np.rot90(image) for image in moving]
        path = write_video(tmp_path / "a.mp4", (np.ascontiguousarray(image) for image in lying))
        turned = extract([turn_by_metadata(path, tmp_path / "b.mp4")], [], profile, weights)
        upright = extract([write_video(tmp_path / "c.mp4", moving)], [], profile, weights)
        assert len(turned.frames) == FRAMES
        for one, other in zip(turned.frames, upright.frames, strict=True):
            np.testing.assert_allclose(one.box, other.box, atol=6)

    def test_pictures_of_frames_are_taken_by_their_numbers(
        self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        files = []
        for number, image in enumerate(moving[::2]):
            files.append(tmp_path / f"{10 * number:05d}.png")
            cv2.imwrite(str(files[-1]), image[:, :, ::-1])
        files[spread(20, FRAMES)[2]].write_bytes(b"")
        found = extract(files, [], profile, weights)
        numbers = [10 * place for place in spread(20, FRAMES)]
        assert [frame.frame_index for frame in found.frames] == [*numbers[:2], *numbers[3:]]
        (failure,) = found.failures
        assert (failure.frame_index, failure.outcome) == (numbers[2], "unreadable")
        assert "empty file" in failure.reason

    def test_a_cut_video_gives_what_it_has(
        self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        path = write_video(tmp_path / "a.mp4", moving, faststart=True, g="10")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        found = extract([path], [], profile, weights)
        assert 2 <= len(found.frames) < FRAMES
        frames = [*found.frames, *found.failures]
        assert [frame.frame_index for frame in frames] == spread(COUNT, FRAMES)
        assert {failure.outcome for failure in found.failures} == {"unreadable"}
        assert "cut off" in found.failures[-1].reason

    def test_frames_without_the_face_are_named(
        self, moving: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        away = [scene({}, width=480) if 10 <= number < 20 else image for number, image in enumerate(moving)]
        found = extract([write_video(tmp_path / "a.mp4", away)], [], profile, weights)
        assert [failure.frame_index for failure in found.failures] == [
            n for n in spread(COUNT, FRAMES) if 10 <= n < 20
        ]
        assert {failure.outcome for failure in found.failures} == {"no face"}
        assert {frame.track_id for frame in found.frames} == {0}


class TestSeveralPeople:
    def mask(self, tmp_path: Path, left: int, right: int, frames: int = COUNT) -> Path:
        mask = np.zeros((320, 640, 3), np.uint8)
        mask[80:220, left:right] = 255
        return write_video(tmp_path / "mask.mp4", [mask] * frames)

    def test_the_one_who_stays_is_taken_though_the_face_is_smaller(
        self, pair: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        found = extract([write_video(tmp_path / "a.mp4", pair)], [], profile, weights)
        assert len(found.frames) == FRAMES
        assert min(centres(found)) > 420

    def test_the_one_under_the_mask_is_taken(
        self, pair: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        mask = self.mask(tmp_path, 120, 220)
        found = extract([write_video(tmp_path / "a.mp4", pair)], [mask], profile, weights)
        assert len({frame.track_id for frame in found.frames}) == 1
        assert max(centres(found)) < 300
        assert len(found.frames) + len(found.failures) == FRAMES
        assert {failure.outcome for failure in found.failures} == {"no face"}
        for frame in found.frames:
            assert frame.mask is not None
            assert frame.mask.shape == (64, 64)
            assert 0.2 < (frame.mask > 127).mean() < 0.9

    def test_a_mask_on_nobody_is_not_another_persons(
        self, pair: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        path = write_video(tmp_path / "a.mp4", pair[:10])
        with pytest.raises(Unusable, match="none of the faces that yunet found lies under the forgery mask"):
            extract([path], [self.mask(tmp_path, 600, 640)], profile, weights)

    def test_a_black_mask_says_nothing_and_a_short_one_covers_what_it_can(
        self, pair: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        mask = self.mask(tmp_path, 0, 0, frames=20)
        found = extract([write_video(tmp_path / "a.mp4", pair)], [mask], profile, weights)
        assert min(centres(found)) > 420
        assert [frame.mask is None for frame in found.frames] == [n >= 20 for n in spread(COUNT, FRAMES)]

    def test_a_damaged_mask_is_not_passed_over(
        self, pair: list[np.ndarray], profile: CropProfile, weights: Path, tmp_path: Path
    ) -> None:
        files, masks = [], []
        for number, image in enumerate(pair[:3]):
            files.append(tmp_path / f"{number}.png")
            masks.append(tmp_path / f"mask-{number}.png")
            cv2.imwrite(str(files[-1]), image[:, :, ::-1])
            cv2.imwrite(str(masks[-1]), np.uint8(255 * (np.indices((160, 320))[1] < 150)))  # of half the size
        masks[1].write_bytes(b"no image")
        found = extract(files, masks, profile, weights)
        assert [frame.frame_index for frame in found.frames] == [0, 2]
        assert max(centres(found)) < 300
        assert [(failure.frame_index, failure.reason) for failure in found.failures] == [
            (1, "mask-1.png: not an image")
        ]


class TestWholeClip:
    @pytest.mark.parametrize(
        ("make", "outcome", "reason"),
        [
            (lambda path: write_video(path, [scene({})] * 20), "no face", "yunet found no face in 8 frames"),
            (lambda path: write_video(path, [scene({})] * 7), "too short", "7 frames: the profile takes 8"),
            (lambda path: path.touch(), "unreadable", "empty file"),
            (lambda path: None, "unreadable", "No such file"),
        ],
    )
    def test_outcome_and_reason(
        self,
        profile: CropProfile,
        weights: Path,
        tmp_path: Path,
        make: Callable[[Path], object],
        outcome: str,
        reason: str,
    ) -> None:
        path = tmp_path / "a.mp4"
        make(path)
        with pytest.raises(Unusable) as caught:
            extract([path], [], profile, weights)
        assert caught.value.outcome == outcome
        assert reason in caught.value.reason

    def test_pictures_that_are_all_unreadable(self, profile: CropProfile, weights: Path, tmp_path: Path) -> None:
        files = [tmp_path / f"{number}.png" for number in range(3)]
        with pytest.raises(Unusable) as caught:
            extract(files, [], profile, weights)
        assert (caught.value.outcome, caught.value.reason) == ("unreadable", "0.png: No such file or directory")


class Scripted(FaceCropper):
    """Finds one face in each of four frames, and a larger one in the last three; those of `flat` cannot be aligned."""

    def __init__(self, profile: CropProfile, flat: set[tuple[int, int]]) -> None:
        super().__init__(profile)
        self.flat, self.frames = flat, iter(range(4))

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Five points that are one are no face."""
        number = next(self.frames)
        boxes = np.array([[20, 60, 100, 140], [320, 60, 150, 200]], np.float32)
        points = [[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]] * boxes[:, None, 2:] + boxes[
            :, None, :2
        ]
        return [
            Detection(boxes[face], points[face] * ((number, face) not in self.flat), 1.0)
            for face in range(1 + (number > 0))
        ]


@pytest.mark.parametrize(
    ("flat", "failed"),
    [({(1, 1), (2, 1), (3, 1)}, []), ({(2, 0), (2, 1)}, [2]), ({(0, 0), (1, 0), (2, 0), (3, 0)}, None)],
)
def test_a_face_that_cannot_be_cut_out_costs_the_frame_if_it_is_the_chosen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: set[tuple[int, int]], failed: list[int] | None
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for file in files:
        cv2.imwrite(str(file), scene({}))
    profile = make_profile("cascade", 64, 1.3, alignment="landmarks")
    monkeypatch.setattr("masm.data.extract._cropper", lambda *_: Scripted(profile, flat))
    if failed is None:
        with pytest.raises(Unusable, match="the face cannot be cut out: landmarks that are no face") as caught:
            extract(files, [], profile, None)
        assert caught.value.outcome == "no face"
        return
    found = extract(files, [], profile, None)
    assert [(frame.frame_index, frame.track_id) for frame in found.frames] == [
        (number, 0) for number in range(4) if number not in failed
    ]
    assert [failure.frame_index for failure in found.failures] == failed
    assert all(failure.outcome == "no face" and "aligned" in failure.reason for failure in found.failures)


def test_drawn_people_through_the_cascade(tmp_path: Path) -> None:
    """Without photographs and YuNet's file: the same way with the embedded people and detector."""
    faces = [draw_face(0, person, 0, 220).image for person in (0, 1)]
    frames = [scene({(20 + number, 40): faces[0], (360 - number, 50): faces[1]}) for number in range(COUNT)]
    path = write_video(tmp_path / "a.mp4", [*frames, *(scene({(60, 40): faces[0]}) for _ in range(COUNT // 2))])
    profile = make_profile("cascade", 64, 1.3, frames=FRAMES)
    found = extract([path], [], profile, None)
    assert len(found.frames) + len(found.failures) == FRAMES
    assert len(found.frames) >= FRAMES - 2
    assert max(centres(found)) < 240  # the left one, who stays
    everything = decode_all(path)
    for frame in found.frames:
        np.testing.assert_array_equal(frame.image, crop(everything[frame.frame_index], frame.box, profile))
        assert frame.landmarks is None


def test_crops_that_are_given_are_taken_whole(tmp_path: Path) -> None:
    """DeepfakeBench's aligned crops, 32 pictures of a face each."""
    files, masks = [], []
    for number in range(5):
        files.append(tmp_path / f"{7 * number:03d}.png")
        masks.append(tmp_path / f"mask{7 * number:03d}.png")
        image = cv2.resize(draw_face(0, 1, number, 128).image, (128, 128))
        cv2.imwrite(str(files[-1]), image[:, :, ::-1])
        cv2.imwrite(str(masks[-1]), np.uint8(255 * (np.indices((128, 128))[0] < 64)))
    found = extract(files, masks, CropProfile("given", 64, 1.3, None, frames=3), None)
    assert [frame.frame_index for frame in found.frames] == [0, 14, 28]
    for frame in found.frames:
        image = cv2.imread(str(tmp_path / f"{frame.frame_index:03d}.png"))[:, :, ::-1]
        np.testing.assert_array_equal(frame.image, cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA))
        assert frame.box.tolist() == [0, 0, 128, 128]
        assert frame.mask is not None
        assert (frame.mask[:32] == 255).all()
        assert (frame.mask[32:] == 0).all()
