"""The detector as an MLflow model: a pyfunc from code, with its weights as safetensors and without pickle."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Object, Property

import masm

DETECTOR = "detector"
FACE_DETECTOR = "face_detector"

# What masm.serving.model imports, directly or through the masm that the model carries.
REQUIREMENTS = (
    "mlflow",  # brings pydantic and PyYAML
    "numpy",
    "opencv-python-headless",
    "pandas",
    "pillow",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)

VIDEO_REQUIREMENT = "av>=18"
"""Without it a model scores images, and says of a video what is missing."""

INPUTS = ("image", "video", "path")
"""Columns of a request, one of them in each row."""

_Fields = dict[str, DataType | Array]
_SCORED: _Fields = {"score": DataType.double, "box": Array(DataType.double)}
_FACE: _Fields = _SCORED | {"probability": DataType.double, "verdict": DataType.string}
_FRAME: _Fields = _SCORED | {"frame_index": DataType.long}


def _parts(fields: _Fields, **optional: DataType | Array) -> Array:
    """A list of dictionaries."""
    properties = [Property(name, kind) for name, kind in fields.items()]
    return Array(Object([*properties, *(Property(name, kind, required=False) for name, kind in optional.items())]))


OUTPUTS: _Fields = {
    "score": DataType.double,
    "probability": DataType.double,
    "verdict": DataType.string,
    "outcome": DataType.string,
    "faces": _parts(_FACE, shares=Array(DataType.double)),
    "frames": _parts(_FRAME, seconds=DataType.double, shares=Array(DataType.double)),
}
"""Columns of the answer, of which `outcome` is always there; `masm.serving.results` says what they are."""

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), name, required=False) for name in INPUTS]),
    outputs=Schema([ColSpec(kind, name, required=name == "outcome") for name, kind in OUTPUTS.items()]),
    params=ParamSchema([ParamSpec("shares", DataType.boolean, False)]),
)


@dataclass(frozen=True)
class ModelFiles:
    """What a served model is made of.

    Attributes:
        detector: the detector folder.
        face_detector: the YuNet file where the crop profile names YuNet, else None.
        example: an encoded image, kept with the model as its input example.
    """

    detector: Path
    face_detector: Path | None
    example: bytes


def log_model(files: ModelFiles) -> ModelInfo:
    """Log the pyfunc to the active MLflow run; it carries the package masm, without the starter's weights."""
    package = Path(masm.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        carried = Path(folder, "code", "masm")
        shutil.copytree(package, carried, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        artifacts = {DETECTOR: str(shutil.copytree(files.detector, Path(folder, DETECTOR)))}
        if files.face_detector is not None:
            copy = shutil.copy(files.face_detector, Path(folder, f"{FACE_DETECTOR}.onnx"))
            artifacts[FACE_DETECTOR] = str(copy)
        return mlflow.pyfunc.log_model(
            name=DETECTOR,
            python_model=str(package / "serving" / "model.py"),
            artifacts=artifacts,
            code_paths=[str(carried)],
            pip_requirements=_pinned(files.detector),
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [base64.b64encode(files.example).decode()]}),
        )


def _pinned(detector: Path) -> list[str]:
    """The requirements at their installed versions, without build labels such as +cpu, which indexes lack."""
    method = json.loads((detector / "detector.json").read_text())["adapter"]["method"]
    names = (*REQUIREMENTS, "peft") if method == "lora" else REQUIREMENTS
    return [*(f"{name}=={version(name).split('+')[0]}" for name in names), _video_requirement()]


def _video_requirement() -> str:
    """PyAV at its installed version, or at any that will do where it is not installed."""
    try:
        return f"av=={version('av')}"
    except PackageNotFoundError:
        return VIDEO_REQUIREMENT
