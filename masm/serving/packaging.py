"""The detector as an MLflow model: a pyfunc from code, with its weights as safetensors and without pickle."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, Schema

import masm

DETECTOR = "detector"
FACE_DETECTOR = "face_detector"

# What masm.serving.model imports, directly or through the masm that the model carries.
REQUIREMENTS = (
    "mlflow",
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

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "image")]),
    outputs=Schema(
        [
            ColSpec(DataType.double, "score", required=False),
            ColSpec(DataType.double, "probability", required=False),
            ColSpec(DataType.string, "verdict", required=False),
            ColSpec(DataType.string, "outcome"),
        ]
    ),
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
    return [f"{name}=={version(name).split('+')[0]}" for name in names]
