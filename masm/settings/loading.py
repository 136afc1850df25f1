"""params.yaml, read, with what the environment says; and its faults in words."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from masm.errors import UserError
from masm.settings.data import DATASET_KINDS
from masm.settings.operation import media_root
from masm.settings.search import SearchSpace
from masm.settings.section import Section
from masm.settings.tree import Settings


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read params.yaml; RAY_ADDRESS, MLFLOW_TRACKING_URI and MASM_MEDIA_ROOT go before what stands in it.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing or has a wrong value; all
            faults are named at once.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError:
        raise UserError(f"{path} cannot be read: run this where a params.yaml is, or give its path.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold sections such as `datasets:`; it holds {tree!r}.")
    if "root" in tree:
        raise UserError(f"{path}: root: not a setting; it is the folder of the file itself.")
    try:
        settings = Settings.model_validate({**tree, "root": path.resolve().parent})
    except ValidationError as error:
        raise UserError(_explain(path, error)) from None
    return _with_environment(settings)


def _with_environment(settings: Settings) -> Settings:
    """Addresses that the environment gives; a relative SQLite file is seen from params.yaml's folder."""
    uri = settings.database(os.environ.get("MLFLOW_TRACKING_URI") or settings.mlflow.tracking_uri)
    artifacts = settings.mlflow.artifacts
    if "://" not in artifacts:
        artifacts = str(settings.path(artifacts))
    storage = settings.ray.storage
    if "://" not in storage:
        storage = str(settings.path(storage))
    address = os.environ.get("RAY_ADDRESS") or settings.ray.address
    media = media_root() or (settings.serving.media_root and settings.path(settings.serving.media_root))
    return settings.model_copy(
        update={
            "mlflow": settings.mlflow.model_copy(update={"tracking_uri": uri, "artifacts": artifacts}),
            "ray": settings.ray.model_copy(update={"address": address, "storage": storage}),
            "serving": settings.serving.model_copy(update={"media_root": media}),
        }
    )


def _explain(path: Path, error: ValidationError) -> str:
    """One line for each fault: where, what, and for an unknown key the nearest known one."""
    lines = []
    for fault in error.errors():
        location = tuple(str(part) for part in fault["loc"])
        kind = DATASET_KINDS.get(location[2]) if location[:1] == ("datasets",) and len(location) > 2 else None
        if kind is not None:  # pydantic's name for one of the two kinds of datasets is no key of the file
            location = (*location[:2], *location[3:])
        where = ".".join(location) or "the file"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{path}: {where}: unknown setting{_nearest(location, kind)}")
        elif fault["type"] == "missing":
            lines.append(f"{path}: {where}: this setting is missing")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = "" if isinstance(fault["input"], dict) else f" (it is {fault['input']!r})"  # no whole sections
            lines.append(f"{path}: {where}: {message}{value}"[:300])
    return "\n".join(lines)


def _nearest(location: tuple[str, ...], kind: type[Section] | None) -> str:
    """A hint for a misspelt key; searched keys in train are named as such."""
    *parents, key = location
    if parents[:1] == ["train"] and key in SearchSpace.model_fields:
        return f"; {key} is searched: set its range in search.space"
    section: Any = Settings
    for parent in parents:
        field = getattr(section, "model_fields", {}).get(parent)
        section = field.annotation if field else kind
    near = difflib.get_close_matches(key, getattr(section, "model_fields", {}), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; remove it"
