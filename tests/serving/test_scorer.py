"""The scorer: its results are those of the detector on the crops of ingest, whichever way they are asked for."""

from __future__ import annotations

import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from masm.data.extract import extract
from masm.data.faces import CascadeDetector, CropProfile, crop, make_profile
from masm.data.images import MOST_PIXELS, ImageError, decode_image
from masm.data.procedural import draw_face
from masm.detector import Detector
from masm.errors import UserError
from masm.serving.scorer import Scorer
from tests.data.videos import numbered, people, scene, write_video
from tests.serving.workspace import DECISIONS, SIZE, moved_detector, random_crop, save, tiny_detector

CASCADE = CropProfile("cascade", SIZE, 1.3, None, frames=8)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A scorer of crops that are given."""
    folder = tmp_path_factory.mktemp("given") / "detector"
    save(tiny_detector(1), folder)
    return Scorer(folder)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A scorer that finds faces by OpenCV's cascade."""
    folder = tmp_path_factory.mktemp("cascade") / "artifacts" / "detector"
    save(tiny_detector(1), folder, CASCADE)
    return Scorer(folder.parents[1])


def direct_logits(scorer: Scorer, crops: list[np.ndarray]) -> np.ndarray:
    """Of the detector as it was trained, one crop at a time, in double precision."""
    detector = Detector.load(scorer.folder).double().eval()
    pixels = [torch.from_numpy(each.copy()).permute(2, 0, 1)[None].double() / 255 for each in crops]
    with torch.inference_mode():
        return np.array([detector(each).item() for each in pixels])


def two_people() -> np.ndarray:
    """The drawn face at the left is the smaller one."""
    left, right = draw_face(0, 0, 0, 180).image, draw_face(0, 1, 0, 260).image
    return scene({(40, 60): left, (330, 30): right})


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def test_every_face_is_scored_and_the_largest_is_the_images(cascade: Scorer) -> None:
    image = two_people()
    result = cascade.score_image(png(image), embeddings=True)
    found = sorted(CascadeDetector().detect(image), key=lambda face: -float(np.prod(face.box[2:])))
    assert len(found) >= 2
    assert [face.box for face in result.faces] == [tuple(face.box.tolist()) for face in found]
    expected = direct_logits(cascade, [crop(image, face.box, CASCADE) for face in found])
    scores = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose([face.score for face in result.faces], scores, atol=1e-6)
    np.testing.assert_allclose(
        [face.probability for face in result.faces], 1 / (1 + np.exp(-(expected / 2 + 0.25))), atol=1e-6
    )
    assert [face.verdict for face in result.faces] == ["fake" if score >= 0.5 else "real" for score in scores]
    assert (result.outcome, result.score) == ("ok", result.faces[0].score)
    assert result.faces[0].box[0] > 320  # the larger one stands at the right
    head = cascade.detector.head
    for face, logit in zip(result.faces, expected, strict=True):
        assert face.embedding is not None
        assert face.embedding @ head.weight[0].detach().numpy() + head.bias.item() == pytest.approx(logit, abs=1e-5)


def test_an_array_is_the_same_as_its_file(cascade: Scorer) -> None:
    image = two_people()
    assert cascade.score_image(image) == cascade.score_image(png(image))
    assert cascade.score_image(np.ones((80, 80, 3), np.uint8)).outcome == "no face"
    assert cascade.score_image(np.ones((80, 80, 3), np.uint8)).score is None


def test_logits_do_not_depend_on_the_batch(given: Scorer) -> None:
    crops = np.stack([decode_image(random_crop(3, index)) for index in range(67)])  # more than two batches
    np.testing.assert_allclose(given.logits(crops), direct_logits(given, list(crops)), atol=1e-5)
    assert given.logits(crops[:0]).shape == (0,)


def test_a_video_is_judged_by_the_mean_of_the_frames_of_ingest(cascade: Scorer, tmp_path: Path) -> None:
    face = draw_face(0, 0, 0, 220).image
    frames = [scene({(20 + 4 * number, 40): face}) for number in range(20)]
    path = write_video(tmp_path / "a.mp4", frames, times=[number * 50 + (number > 9) * 1000 for number in range(20)])
    result = cascade.score_video(path)
    expected = extract([path], [], CASCADE, None).frames
    assert len(expected) >= 6
    assert [frame.frame_index for frame in result.frames] == [frame.frame_index for frame in expected]
    scores = 1 / (1 + np.exp(-direct_logits(cascade, [frame.image for frame in expected])))
    np.testing.assert_allclose([frame.score for frame in result.frames], scores, atol=1e-6)
    assert result.score == pytest.approx(scores.mean(), abs=1e-6)
    decision = DECISIONS["video"]
    assert result.probability == pytest.approx(decision.calibration.probability(scores.mean()), abs=1e-5)
    assert result.verdict == ("fake" if scores.mean() >= decision.threshold else "real")
    assert decision != DECISIONS["frame"]  # or the lines above say less
    times = [frame.frame_index * 0.05 + (frame.frame_index > 9) for frame in result.frames]
    assert [frame.seconds for frame in result.frames] == pytest.approx(times, abs=1e-3)


def test_a_video_shorter_than_the_profile_is_scored_by_what_there_is(given: Scorer, tmp_path: Path) -> None:
    result = given.score_video(write_video(tmp_path / "a.mp4", numbered(5)))
    assert [frame.frame_index for frame in result.frames] == [0, 1, 2, 3, 4]


def test_a_limited_length_is_not_passed_by_a_cut_file_or_by_frames_without_number(
    given: Scorer, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (130, 64, 64, 3), np.uint8)
    whole = write_video(tmp_path / "whole.mp4", list(noise), codec="mpeg4", faststart=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:-2000])
    for name in ("whole", "cut"):
        assert len(given.find_in_video(tmp_path / f"{name}.mp4", 6)) > 1
        with pytest.raises(ImageError, match="the video lasts 5 s, more than the 4 s"):
            given.find_in_video(tmp_path / f"{name}.mp4", 4)
    dense = write_video(tmp_path / "dense.mp4", list(noise), codec="mpeg4", times=list(range(130))).read_bytes()
    with pytest.raises(ImageError, match="130 frames, more than 1 s hold"):
        given.find_in_video(dense, 1)
    with pytest.raises(ImageError, match="decompression bomb"):
        Scorer(given.folder, max_pixels=64 * 64 - 1).find_in_video(whole, 6)


def test_without_pyav_a_video_has_an_outcome(given: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert "PyAV, which is not installed" in given.score_video(tmp_path / "a.mp4").outcome


def test_bad_videos_say_why(given: Scorer, cascade: Scorer, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    whole = write_video(tmp_path / "whole.mp4", numbered(20)).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # its table stands at the end
    outcomes = [given.score_video(tmp_path / f"{name}.mp4").outcome for name in ("empty", "text", "half", "missing")]
    assert outcomes[0] == "empty file"
    assert all(outcome.startswith("cannot be opened as a video") for outcome in outcomes[1:])
    assert cascade.score_video(tmp_path / "whole.mp4").outcome == "no face"
    small = Scorer(given.folder, max_pixels=96 * 160 - 1)
    assert small.score_video(tmp_path / "whole.mp4").outcome.startswith("decompression bomb")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_images_are_refused_by_their_headers(given: Scorer) -> None:
    most = SIZE * SIZE - 1
    small = Scorer(given.folder, max_pixels=most)
    expected = f"decompression bomb: more than {most} pixels"
    assert small.score_image(random_crop(1)).outcome == expected
    assert small.score_image(decode_image(random_crop(1))).outcome == expected
    data = bytearray(random_crop(1))
    data[16:24] = (10_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    outcome = given.score_image(bytes(data)).outcome
    assert outcome == f"decompression bomb: more than {MOST_PIXELS} pixels"


def test_threads_share_a_scorer(cascade: Scorer) -> None:
    images = [png(two_people()), png(draw_face(0, 2, 0, 300).image), png(np.ones((90, 70, 3), np.uint8))] * 8
    expected = [cascade.score_image(image) for image in images[:3]] * 8
    with ThreadPoolExecutor(4) as pool:
        for result, alone in zip(pool.map(cascade.score_image, images), expected, strict=True):
            assert [face.box for face in result.faces] == [face.box for face in alone.faces]
            assert [face.score for face in result.faces] == pytest.approx(
                [face.score for face in alone.faces], abs=1e-6
            )


def test_shares_are_those_of_the_detector(tmp_path: Path, given: Scorer) -> None:
    save(moved_detector(1), tmp_path / "detector")
    scorer, image = Scorer(tmp_path / "detector"), decode_image(random_crop(2))
    crops = np.stack([decode_image(random_crop(2, index)) for index in range(40)])
    detector = Detector.load(tmp_path / "detector").eval()
    expected = detector.subspace_shares(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(expected.abs().sum(dim=1), 1, atol=1e-5)
    np.testing.assert_allclose(scorer.shares(crops), expected, atol=1e-3)
    face = scorer.score_image(image, shares=True).faces[0]
    np.testing.assert_allclose([face.shares], scorer.shares(np.stack([image])), atol=1e-6)
    assert scorer.score_image(image).faces[0].shares is None
    assert given.score_image(image, shares=True).faces[0].shares == (0, 0)  # nothing was learnt


def test_a_method_without_subspaces_has_no_shares(tmp_path: Path) -> None:
    save(tiny_detector(1).merged(), tmp_path / "detector")
    assert Scorer(tmp_path / "detector").score_image(random_crop(2), shares=True).faces[0].shares == ()


def test_yunet_of_the_models_folder_finds_faces(shared: Path, tmp_path: Path) -> None:
    weights = shared / "models" / "face_detection_yunet_2023mar.onnx"
    folder = tmp_path / "artifacts"
    save(tiny_detector(1), folder / "detector", make_profile("yunet", SIZE, 1.3, weights))
    (folder / "face_detector.onnx").write_bytes(weights.read_bytes())
    first, second = people(shared, 2)
    result = Scorer(tmp_path).score_image(scene({(0, 0): first, (320, 0): second}))
    assert sorted(face.box[0] > 320 for face in result.faces) == [False, True]
    (folder / "face_detector.onnx").unlink()
    with pytest.raises(UserError, match="no YuNet file"):
        Scorer(tmp_path)


def test_a_folder_without_a_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no detector"):
        Scorer(tmp_path)
