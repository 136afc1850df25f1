"""The registered pyfunc: what it answers is what the detector says, wherever it is loaded."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import PyFuncModel

from masm import registry
from masm.data.faces import CropProfile, YuNetDetector, crop, find_face, make_profile
from masm.data.images import decode_image
from masm.detector import Detector
from masm.serving.packaging import ModelFiles, log_model
from masm.settings import Settings
from pipelines import promote
from tests.serving.workspace import (
    ROOT,
    SIZE,
    make_workspace,
    own_address,
    random_crop,
    save,
    tiny_detector,
)

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


def logged_model(folder: Path, profile: CropProfile, weights: Path | None) -> PyFuncModel:
    """A tiny detector with this crop profile, logged and loaded again."""
    save(tiny_detector(1), folder / "detector", profile)
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


@pytest.mark.slow
def test_model_brings_its_own_masm(settings: Settings, tmp_path: Path) -> None:
    """In a process that cannot import masm otherwise, and elsewhere in the file system."""
    code = f"""
import sys
sys.path = [entry for entry in sys.path if entry not in ("", {str(ROOT)!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import importlib.util, mlflow, pandas
assert importlib.util.find_spec("masm") is None
model = mlflow.pyfunc.load_model({champion_uri(settings)!r})
answer = model.predict(pandas.DataFrame({encode(random_crop(1)).to_dict("list")!r}))
import masm
print(masm.__file__, answer["score"][0])
"""
    environment = {**_environment(settings), **NO_PICKLE}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, score = done.stdout.split()[-2:]
    assert Path(where).parts[-3:] == ("code", "masm", "__init__.py")
    expected = direct_score(settings.root / "models" / "detector", decode_image(random_crop(1)))
    assert float(score) == pytest.approx(expected, abs=1e-6)


def _environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that knows MLflow's address, and finds the virtual environment's programs."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "MLFLOW_TRACKING_URI": settings.mlflow.tracking_uri, "PATH": path}


@pytest.mark.slow
def test_mlflow_serves_the_champion(settings: Settings, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "mlflow", "models", "serve", "-m", champion_uri(settings), "-p", str(port)]
    server = subprocess.Popen(
        [sys.executable, *command, "--env-manager", "local"],
        cwd=tmp_path,
        env={**_environment(settings), **NO_PICKLE},
        start_new_session=True,
    )
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/ping")
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
            assert bad == {"score": None, "probability": None, "verdict": None, "outcome": "not base64"}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    for _ in range(240):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server did not start within two minutes")


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
