"""The registered pyfunc: what it answers is what the detector says, wherever it is loaded."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel
from packaging.requirements import Requirement

from masm import registry
from masm.data.faces import CropProfile, YuNetDetector, crop, find_face, make_profile
from masm.data.images import decode_image
from masm.data.procedural import draw_face
from masm.detector import Detector
from masm.serving.packaging import OUTPUTS, ModelFiles, log_model
from masm.serving.scorer import Scorer
from masm.settings import Settings
from pipelines import promote
from tests.data.videos import decode_all, numbered, scene, write_video
from tests.ports import free_port
from tests.serving.workspace import (
    DECISIONS,
    PROFILE,
    SIZE,
    make_workspace,
    moved_detector,
    own_address,
    random_crop,
    save,
    tiny_detector,
)
from tests.waiting import answers, wait_for

NO_PICKLE = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A workspace whose detector is registered as champion."""
    folder = tmp_path_factory.mktemp("served")
    with own_address():
        settings = make_workspace(folder / "workspace", folder / "mlflow.db")
        promote.main(settings)
        yield settings


@pytest.fixture(autouse=True)
def _connected(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.connect(settings.mlflow)
    monkeypatch.setenv(*next(iter(NO_PICKLE.items())))


def champion_uri(settings: Settings) -> str:
    return f"models:/{settings.mlflow.model}@champion"


def encode(*images: bytes) -> pd.DataFrame:
    return pd.DataFrame({"image": [base64.b64encode(image).decode() for image in images]})


def logged_model(
    folder: Path, profile: CropProfile, weights: Path | None, detector: Detector | None = None
) -> PyFuncModel:
    """A tiny detector with this crop profile, logged and loaded again."""
    save(detector or tiny_detector(1), folder / "detector", profile)
    with mlflow.start_run():
        info = log_model(ModelFiles(folder / "detector", weights, random_crop(0)))
    return mlflow.pyfunc.load_model(info.model_uri)


def direct_score(folder: Path, image: np.ndarray) -> float:
    """The score of a (SIZE, SIZE, 3) crop by the detector itself."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return torch.sigmoid(Detector.load(folder, merged=True).eval()(pixels).double()).item()


def test_scores_are_those_of_the_detector(settings: Settings) -> None:
    images = [random_crop(9, index) for index in range(40)]  # more than a batch
    answer = mlflow.pyfunc.load_model(champion_uri(settings)).predict(encode(*images))
    folder = settings.root / "models" / "detector"
    expected = np.array([direct_score(folder, decode_image(image)) for image in images])
    np.testing.assert_allclose(answer["score"].astype(float), expected, atol=1e-6)
    logits = np.log(expected / (1 - expected))
    np.testing.assert_allclose(answer["probability"].astype(float), 1 / (1 + np.exp(-(logits / 2 + 0.25))), atol=1e-6)
    assert answer["verdict"].tolist() == ["fake" if score >= 0.5 else "real" for score in expected]
    assert set(answer["verdict"]) == {"fake", "real"}  # or the line above says little
    assert set(answer["outcome"]) == {"ok"}


def test_bad_images_say_why_and_leave_the_others_alone(settings: Settings) -> None:
    good = base64.b64encode(random_crop(1)).decode()
    wrapped = base64.encodebytes(random_crop(1)).decode()
    texts = [good, "%%%", "", base64.b64encode(b"plain text").decode(), good[: len(good) // 8 * 4], wrapped]
    answer = mlflow.pyfunc.load_model(champion_uri(settings)).predict(pd.DataFrame({"image": texts}))
    assert answer["outcome"].tolist()[:4] == ["ok", "not base64", "empty file", "not an image"]
    assert "truncated" in answer["outcome"][4]
    assert answer["score"].isna().tolist() == [False, True, True, True, True, False]
    assert answer["score"][0] == pytest.approx(answer["score"][5], abs=1e-6)
    assert answer.loc[1:4, ["score", "probability", "verdict"]].isna().all(axis=None)


def test_only_bad_images_and_no_image_are_answered_too(settings: Settings) -> None:
    model = mlflow.pyfunc.load_model(champion_uri(settings))
    assert model.predict(pd.DataFrame({"image": ["%%%"]}))["outcome"].tolist() == ["not base64"]
    assert len(model.predict(pd.DataFrame({"image": pd.Series([], dtype="str")}))) == 0


def test_given_crops_of_another_size_are_resized(settings: Settings) -> None:
    large = np.kron(decode_image(random_crop(3)), np.ones((2, 2, 1), np.uint8))
    encoded = cv2.imencode(".png", large[:, :, ::-1])[1].tobytes()
    answer = mlflow.pyfunc.load_model(champion_uri(settings)).predict(encode(encoded, random_crop(3)))
    assert answer["score"][0] == pytest.approx(answer["score"][1], abs=1e-6)


def test_an_image_is_base64_bytes_or_pixels(settings: Settings) -> None:
    model = mlflow.pyfunc.load_model(champion_uri(settings))
    data = random_crop(4)
    pixels = decode_image(data)
    values = [base64.b64encode(data).decode(), data, bytearray(data), pixels, pixels.tolist()]
    answer = model.predict(pd.DataFrame({"image": values}))
    expected = direct_score(settings.root / "models" / "detector", pixels)
    np.testing.assert_allclose(answer["score"].astype(float), expected, atol=1e-6)
    assert answer["frames"].tolist() == [None] * 5
    assert model.predict({"image": [values[0], values[0]]})["outcome"].tolist() == ["ok", "ok"]  # as MLflow documents
    wrong = model.predict(pd.DataFrame({"image": [pixels.tolist()[0], [], 5]}))["outcome"]
    assert [outcome.split(" ")[0] for outcome in wrong] == ["an", "an", "not"]


def test_a_row_has_one_of_the_columns(settings: Settings) -> None:
    model = mlflow.pyfunc.load_model(champion_uri(settings))
    text = base64.b64encode(random_crop(1)).decode()
    rows = [{"image": text, "video": text}, {"image": None}, {"image": text}]
    outcomes = model.predict(pd.DataFrame(rows))["outcome"].tolist()
    assert [outcome.startswith("each row has one of image, video, path") for outcome in outcomes] == [
        True,
        True,
        False,
    ]
    with pytest.raises(MlflowException, match="none of the columns image, video, path is there"):
        model.predict(pd.DataFrame({"picture": [text]}))


def test_every_face_of_a_photograph_is_answered_with_its_box(tmp_path: Path) -> None:
    model = logged_model(tmp_path, CropProfile("cascade", SIZE, 1.3, None), None, moved_detector(1))
    image = scene({(40, 60): draw_face(0, 0, 0, 180).image, (330, 30): draw_face(0, 1, 0, 260).image})
    answer = model.predict(pd.DataFrame({"image": [image]}), params={"shares": True})
    expected = Scorer(tmp_path / "detector").score_image(image, shares=True)
    faces = answer["faces"][0]
    assert len(faces) == len(expected.faces) >= 2
    for face, other in zip(faces, expected.faces, strict=True):
        assert face == {
            "box": list(other.box),
            "score": pytest.approx(other.score, abs=1e-6),
            "probability": pytest.approx(other.probability, abs=1e-6),
            "verdict": other.verdict,
            "shares": pytest.approx(list(other.shares), abs=1e-4),
        }
        assert sum(map(abs, face["shares"])) == pytest.approx(1, abs=1e-6)
    assert answer["score"][0] == faces[0]["score"]
    assert model.predict(pd.DataFrame({"image": [image]}))["faces"][0][0]["shares"] is None


def test_a_video_is_bytes_or_base64(settings: Settings, tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4", numbered(12), codec="mpeg4").read_bytes()
    values = [data, base64.b64encode(data).decode(), data[: len(data) // 3], b"", "%%%"]
    answer = mlflow.pyfunc.load_model(champion_uri(settings)).predict(pd.DataFrame({"video": values}))
    frames = decode_all(tmp_path / "a.mp4")
    profile = replace(PROFILE, margin=1.0)
    crops = [crop(frame, np.array([0, 0, *frame.shape[1::-1]], np.float32), profile) for frame in frames]
    scores = [direct_score(settings.root / "models" / "detector", each) for each in crops]
    for row in (0, 1):
        assert [frame["frame_index"] for frame in answer["frames"][row]] == list(range(12))
        assert [frame["seconds"] for frame in answer["frames"][row]] == pytest.approx(np.arange(12) / 25, abs=1e-3)
        assert [frame["score"] for frame in answer["frames"][row]] == pytest.approx(scores, abs=1e-6)
        decision = DECISIONS["video"]
        mean = np.mean(scores)
        assert answer["score"][row] == pytest.approx(mean, abs=1e-6)
        assert answer["probability"][row] == pytest.approx(decision.calibration.probability(mean), abs=1e-5)
        assert answer["verdict"][row] == ("fake" if mean >= decision.threshold else "real")
    assert answer["score"].isna().tolist() == [False, False, True, True, True]
    assert answer["outcome"].tolist()[3:] == ["empty file", "not base64"]
    assert answer["outcome"][2].startswith("cannot be opened as a video")


def test_a_request_reads_no_file_of_the_server(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlflow.pyfunc.load_model(champion_uri(settings))
    media = tmp_path / "media"
    media.mkdir()
    for name in ("media/a.png", "secret.png"):
        (tmp_path / name).write_bytes(random_crop(1))
    write_video(media / "b.mp4", numbered(4))
    rows = pd.DataFrame({"path": ["a.png", str(media / "b.mp4"), "../secret.png", "missing.png"]})
    monkeypatch.delenv("MASM_MEDIA_ROOT", raising=False)
    assert {outcome.split(":")[0] for outcome in model.predict(rows)["outcome"]} == {"file paths are not taken"}
    monkeypatch.setenv("MASM_MEDIA_ROOT", str(media))
    answer = model.predict(rows)
    assert answer["outcome"].tolist()[:2] == ["ok", "ok"]
    assert len(answer["frames"][1]) == 4
    assert [text.split(" ")[0] for text in answer["outcome"][2:]] == ["a", "no"]
    as_base64 = model.predict(pd.DataFrame({"image": [str(media / "a.png")], "video": [None]}))
    assert as_base64["outcome"].tolist() == ["not base64"]


def test_photograph_without_a_face_has_that_outcome(tmp_path: Path) -> None:
    model = logged_model(tmp_path, CropProfile("cascade", SIZE, 1.3, None), None)
    answer = model.predict(encode(random_crop(5)))
    assert answer["outcome"].tolist() == ["no face"]
    assert answer["score"].tolist() == [None]


@pytest.mark.parametrize("alignment", ["square", "landmarks"])
def test_photographs_are_cropped_as_the_profile_that_travels_says(
    shared: Path, tmp_path: Path, alignment: str
) -> None:
    weights = shared / "models" / "face_detection_yunet_2023mar.onnx"
    photograph = min((shared / "faces" / "london").rglob("*.jpg")).read_bytes()
    profile = make_profile("yunet", SIZE, 1.3, weights, alignment)
    answer = logged_model(tmp_path, profile, weights).predict(encode(photograph))
    image = decode_image(photograph)
    face = find_face(image, YuNetDetector(weights))
    assert face is not None
    assert answer["outcome"].tolist() == ["ok"]
    expected = direct_score(tmp_path / "detector", crop(image, face.box, profile, landmarks=face.landmarks))
    assert answer["score"][0] == pytest.approx(expected, abs=1e-6)


def test_model_is_code_and_safetensors_without_pickle(settings: Settings) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(champion_uri(settings)))
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
    assert (folder / "artifacts" / "detector" / "model.safetensors").is_file()
    requirements = (folder / "requirements.txt").read_text().split()
    assert any(line.startswith("torch==") for line in requirements)
    assert all("==" in line and "+" not in line for line in requirements)


def only(requirements: list[str], folder: Path) -> Path:
    """Fill a folder with links to the installed packages that some requirements bring, and to no others."""
    for name in needed(requirements, set()):
        package = distribution(name)
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for top in sorted(tops):
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
    return folder


def needed(requirements: list[str], known: set[str]) -> set[str]:
    """The installed distributions that these requirements name, and all that those require."""
    for requirement in map(Requirement, requirements):
        extras = ["", *requirement.extras]
        keys = {f"{requirement.name}[{extra}]" for extra in extras}
        try:
            own = [Requirement(text) for text in distribution(requirement.name).requires or ()]
        except PackageNotFoundError:
            continue  # an extra's, that is not installed
        if keys <= known:
            continue
        known |= keys
        wanted = [
            str(each) for each in own if not each.marker or any(each.marker.evaluate({"extra": e}) for e in extras)
        ]
        needed([text.partition(";")[0] for text in wanted], known)
    return {key.partition("[")[0] for key in known}


ELSEWHERE = """
import importlib.util, sys
import mlflow, pandas
for module in ("masm", "ray", "kornia", "dvc", "great_expectations", "pytest"):
    assert importlib.util.find_spec(module) is None, module
uri, image, video = sys.argv[1:]
model = mlflow.pyfunc.load_model(uri)
answer = model.predict(pandas.DataFrame([{"image": image}, {"video": video}]), params={"shares": True})
import masm
print(masm.__file__, *answer["score"])
"""


@pytest.mark.slow
def test_model_brings_its_own_masm_and_needs_its_requirements_alone(settings: Settings, tmp_path: Path) -> None:
    requirements = Path(mlflow.artifacts.download_artifacts(f"{champion_uri(settings)}/requirements.txt"))
    (tmp_path / "site").mkdir()
    site = only(requirements.read_text().split(), tmp_path / "site")
    video = write_video(tmp_path / "a.mp4", numbered(3)).read_bytes()
    media = [base64.b64encode(data).decode() for data in (random_crop(1), video)]
    environment = {**_environment(settings), **NO_PICKLE, "PYTHONPATH": str(site)}
    command = [sys.executable, "-S", "-P", "-c", ELSEWHERE, champion_uri(settings), *media]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, score, of_video = done.stdout.split()[-3:]
    assert Path(where).parts[-3:] == ("code", "masm", "__init__.py")
    scorer = Scorer(settings.root / "models" / "detector")
    assert float(score) == pytest.approx(scorer.score_image(random_crop(1)).score, abs=1e-6)
    assert float(of_video) == pytest.approx(scorer.score_video(tmp_path / "a.mp4").score, abs=1e-6)


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that knows MLflow's address, and finds the virtual environment's programs."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "MLFLOW_TRACKING_URI": settings.mlflow.tracking_uri, "PATH": path}


@pytest.mark.slow
def test_mlflow_serves_the_champion(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    command = ["-m", "mlflow", "models", "serve", "-m", champion_uri(settings), "-p", str(port)]
    server = subprocess.Popen(
        [sys.executable, *command, "--env-manager", "local"],
        cwd=tmp_path,
        env={**_environment(settings), **NO_PICKLE},
        start_new_session=True,
    )
    try:
        wait_for("the server", lambda: answers(f"http://127.0.0.1:{port}/ping"), process=server)
        image = base64.b64encode(random_crop(1)).decode()
        expected = direct_score(settings.root / "models" / "detector", decode_image(random_crop(1)))
        for body in (
            {"dataframe_records": [{"image": image}, {"image": "%%%"}]},
            {"inputs": [{"image": image}, {"image": "%%%"}]},
            {"inputs": {"image": [image, "%%%"]}},
        ):
            good, bad = _post(f"http://127.0.0.1:{port}/invocations", body)["predictions"]
            assert good["score"] == pytest.approx(expected, abs=1e-6)
            assert good["outcome"] == "ok"
            assert bad == dict.fromkeys(OUTPUTS) | {"outcome": "not base64", "faces": []}
        video = write_video(tmp_path / "a.mp4", numbered(3)).read_bytes()
        rows = [
            {"image": decode_image(random_crop(1)).tolist()},
            {"video": base64.b64encode(video).decode()},
            {"path": str(tmp_path / "a.mp4")},
        ]
        body = {"dataframe_records": rows, "params": {"shares": True}}
        pixels, film, path = _post(f"http://127.0.0.1:{port}/invocations", body)["predictions"]
        assert pixels["score"] == pytest.approx(expected, abs=1e-6)
        assert len(pixels["faces"][0]["shares"]) == 2
        scores = [frame["score"] for frame in film["frames"]]
        assert film["score"] == pytest.approx(np.mean(scores), abs=1e-9)
        assert len(scores) == 3
        assert path["outcome"].startswith("file paths are not taken")
        for wrong in ({"dataframe_records": [{"picture": image}]}, {"inputs": [image]}, {"image": image}):
            with pytest.raises(urllib.error.HTTPError) as caught:
                _post(f"http://127.0.0.1:{port}/invocations", wrong)
            assert caught.value.code == 400
        assert _post(f"http://127.0.0.1:{port}/invocations", {"inputs": [{"image": image}]})["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
