"""Workspaces: the repository's root is the demo's; photographs get a folder of their own under runs/."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import timm
import yaml

from masm.errors import UserError

YUNET = Path("../shared/models/face_detection_yunet_2023mar.onnx")
"""Where YuNet is looked for, from the repository's root, when no path is given."""

WITHOUT_LANDMARKS = {
    "selfblend": {"role": "train", "camera": "compact", "forgeries": ["selfblend"]},
    "denoise": {"role": "validate", "camera": "compact", "forgeries": ["denoise"]},
    "upsample": {"role": "test", "camera": "compact", "forgeries": ["upsample"]},
    "second-camera": {"role": "test", "camera": "phone", "forgeries": ["selfblend"]},
}
"""The datasets where the face detector gives no landmarks, so that swap and reenact cannot be made."""


@dataclass(frozen=True)
class Source:
    """Photographs of real people, and the models that go with them.

    Attributes:
        faces: a folder of photographs, named PERSON_anything.
        backbone: a safetensors file named by its timm model, such as vit_tiny_patch16_224.safetensors; None
            for the starter.
        face_detector: YuNet's .onnx file; None for OpenCV's cascade, which gives no landmarks.
    """

    faces: Path
    backbone: Path | None
    face_detector: Path | None


def create_workspace(root: Path, source: Source) -> Path:
    """Make runs/NAME, NAME being that of the folder of photographs: the same dvc.yaml, its own params.yaml.

    A params.yaml that is there is kept as it is.

    Args:
        root: the repository.
        source: what to work on.

    Returns:
        The workspace's folder.

    Raises:
        UserError: a file is missing, the backbone's name is no timm model, or the workspace is there for
            another source.
    """
    for what, path in (("FACES", source.faces), ("BACKBONE", source.backbone), ("DETECTOR", source.face_detector)):
        if path is not None and not path.exists():
            raise UserError(f"{what}: there is nothing at {path}: give the path of what is there.")
    name = source.faces.resolve().name
    workspace = root / "runs" / name
    workspace.mkdir(parents=True, exist_ok=True)
    params, own = workspace / "params.yaml", _own_settings(name, workspace, source)
    shutil.copyfile(root / "dvc.yaml", workspace / "dvc.yaml")
    if params.exists():  # it may hold someone's changes
        kept = yaml.safe_load(params.read_text())
        if _merged(kept, own) != kept:
            raise UserError(
                f"{params} is there already, for other FACES, BACKBONE or DETECTOR: give the same ones, or move "
                f"{workspace} away."
            )
        return workspace
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree = _merged(tree, yaml.safe_load((root / "runs" / "photographs.yaml").read_text()))
    tree = _merged(tree, own)
    if source.face_detector is None:
        tree["datasets"] = WITHOUT_LANDMARKS
    header = f"# The workspace of {name}; what each setting means is said in the repository's params.yaml.\n"
    params.write_text(header + yaml.safe_dump(tree, sort_keys=False))
    return workspace


def _own_settings(name: str, workspace: Path, source: Source) -> dict[str, Any]:
    """Where everything is, seen from the workspace."""
    own: dict[str, Any] = {
        "code": "../..",
        "faces": {"folder": relpath(source.faces, workspace)},
        "crop": {"detector": "cascade"},
        "backbone": {"name": "starter", "weights": "starter"},
        "mlflow": {
            "tracking_uri": "sqlite:///../../mlflow.db",
            "artifacts": "../../mlartifacts",
            "experiment": f"masm-{name}",
            "model": f"masm-detector-{name}",
        },
    }
    if source.face_detector is not None:
        own["crop"] = {"detector": "yunet", "detector_weights": relpath(source.face_detector, workspace)}
    if source.backbone is not None:
        if not timm.is_model(source.backbone.stem):
            raise UserError(
                f"BACKBONE: {source.backbone.name} is not named by a timm model: call it MODEL.safetensors, such as "
                "vit_tiny_patch16_224.safetensors."
            )
        own["backbone"] = {"name": source.backbone.stem, "weights": relpath(source.backbone, workspace)}
    return own


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in place of its own."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result
