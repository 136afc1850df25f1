from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from masm import exporting
from masm.detector import Detector
from masm.errors import CheckFailed, UserError
from masm.exporting import Format, export
from tests.serving.workspace import PROFILE, SIZE, save, tiny_detector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    folder = tmp_path_factory.mktemp("detector") / "detector"
    save(tiny_detector(0), folder)
    return Detector.load(folder, merged=True).eval()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, detector: Detector) -> Path:
    path = tmp_path_factory.mktemp("exports") / "new" / "model.pt2"
    assert export(detector, path, "torch") < 1e-5
    return path


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory, detector: Detector) -> Path:
    path = tmp_path_factory.mktemp("exports") / "model.onnx"
    assert export(detector, path, "onnx") < 1e-5
    return path


def check(run: Callable[[Tensor], np.ndarray], detector: Detector) -> None:
    """On photographs of plain colour, which the export's own check does not see."""
    for batch in (1, 7):
        images = torch.rand(batch, 3, 1, 1, generator=torch.Generator().manual_seed(batch)).expand(-1, -1, SIZE, SIZE)
        images = images.contiguous()
        with torch.inference_mode():
            np.testing.assert_allclose(run(images), detector(images).numpy(), atol=1e-5)


def test_program_scores_as_the_detector(program: Path, detector: Detector) -> None:
    module = torch.export.load(program).module()
    check(lambda images: module(images).detach().numpy(), detector)
    assert list(program.parent.iterdir()) == [program]


def test_onnx_scores_as_the_detector(onnx: Path, detector: Detector) -> None:
    session = onnxruntime.InferenceSession(onnx)
    check(lambda images: session.run(None, {"images": images.numpy()})[0], detector)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.shape[1:], given.name) == ("images", [3, SIZE, SIZE], "logits")
    assert isinstance(taken.shape[0], str)  # a name: any number goes in
    assert list(onnx.parent.iterdir()) == [onnx]


def test_metadata_says_what_the_logits_mean(program: Path, onnx: Path, detector: Detector) -> None:
    extra = {"masm.json": ""}
    torch.export.load(program, extra_files=extra)
    entry = onnxruntime.InferenceSession(onnx).get_modelmeta().custom_metadata_map["masm.json"]
    assert json.loads(entry) == json.loads(extra["masm.json"])
    told = json.loads(entry)
    assert told["input"]["shape"] == ["batch", 3, SIZE, SIZE]
    assert told["classes"] == ["real", "fake"]
    assert told["crop"]["margin"] == PROFILE.margin
    assert detector.card.items() <= told.items()


def test_program_holds_nothing_pickled(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            # What torch.save writes is a zip file, a bare pickle begins with its protocol.
            assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")), name


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_file_that_scores_otherwise_is_not_left(
    tmp_path: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    """The detector is another one after it was exported."""
    other = tiny_detector(1).merged()
    write = getattr(exporting, f"_write_{'program' if form == 'torch' else form}")

    def write_and_change(model: Detector, path: Path) -> object:
        run = write(model, path)
        model.head.bias.data += 1e-3
        return run

    monkeypatch.setattr(exporting, write.__name__, write_and_change)
    kept = tmp_path / ("model.pt2" if form == "torch" else "model.onnx")
    kept.write_text("a former file")
    with pytest.raises(CheckFailed, match="no file was written"):
        export(other, kept, form)
    assert kept.read_text() == "a former file"
    assert list(tmp_path.iterdir()) == [kept]


def test_names_that_do_not_fit_and_places_that_are_closed(tmp_path: Path, detector: Detector) -> None:
    with pytest.raises(UserError, match=r"named \*\.onnx"):
        export(detector, tmp_path / "model.pt2", "onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(detector, tmp_path / "file" / "model.pt2", "torch")


def test_onnx_that_is_not_installed_is_named(
    tmp_path: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"install masm\[export\]"):
        export(detector, tmp_path / "model.onnx", "onnx")
