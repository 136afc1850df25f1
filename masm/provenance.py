"""Where a registered model comes from: data, code, settings, environment, run and artifact, read back from MLflow."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, get_args

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from masm.errors import UserError
from masm.settings import Role

ROLES = get_args(Role)
STAGES = ("search", "train")

Chain = dict[str, Any]
"""What `trace` gives: JSON values by link, the raw data first and the model last."""


def trace(client: MlflowClient, version: ModelVersion) -> Chain:
    """The chain that made a version.

    Args:
        client: of `masm.registry.connect`.
        version: of `masm.registry.find_version`.

    Returns:
        `data` (a list: name, role, path, md5), `backbone`, `code`, `settings`, `protocol`, `environment`, `stages`
        (the runs in which search and training told what they did), `run` and `model`; what was not recorded is None.

    Raises:
        UserError: the version was registered without a run, this is gone, or names its data otherwise than masm.
    """
    run = run_of(client, version)
    tags = {**run.data.tags, **version.tags}
    return {
        "data": _datasets(run),
        "backbone": {"name": run.data.params.get("backbone.name"), "sha256": tags.get("backbone.sha256")},
        "code": {"commit": tags.get("git.commit"), "dirty": _flag(tags.get("git.dirty"))},
        "settings": {"hash": tags.get("settings.hash")},
        "protocol": {"hash": tags.get("protocol.hash")},
        "environment": {"hash": tags.get("environment.hash")},
        "stages": {stage: tags.get(f"{stage}_run_id") for stage in STAGES},
        "run": _run(client, run),
        "model": _model(client, version),
    }


def run_of(client: MlflowClient, version: ModelVersion) -> Run:
    """The run that made a version.

    Raises:
        UserError: it was registered without one, or the run is gone.
    """
    if not version.run_id:
        raise UserError(
            f"{version.name} version {version.version} was registered without a run: nothing says where it comes from."
        )
    try:
        return client.get_run(version.run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        raise UserError(
            f"run {version.run_id} of {version.name} version {version.version} is gone from MLflow: nothing says "
            "where it comes from."
        ) from None


def _datasets(run: Run) -> list[dict[str, Any]]:
    try:
        found = [_dataset(item) for item in (run.inputs.dataset_inputs if run.inputs else ())]
        return sorted(found, key=lambda row: (ROLES.index(row["role"]), row["name"]))
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"run {run.info.run_id} names its datasets otherwise than masm does: its lineage cannot be read."
        ) from None


def _dataset(item: DatasetInput) -> dict[str, Any]:
    address = json.loads(item.dataset.source)["tags"]
    (role,) = (tag.value for tag in item.tags if tag.key == "mlflow.data.context")
    return {"name": item.dataset.name, "role": role, "path": address["dvc.path"], "md5": address["dvc.md5"]}


def _run(client: MlflowClient, run: Run) -> dict[str, Any]:
    return {
        "id": run.info.run_id,
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "status": run.info.status,
        "started": _time(run.info.start_time),
        "finished": _time(run.info.end_time),
    }


def _model(client: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    aliases = client.get_registered_model(version.name).aliases
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, number in aliases.items() if str(number) == str(version.version)),
        "verdict": version.tags.get("verdict"),
        "artifacts_sha256": version.tags.get("artifacts.sha256"),
        "created": _time(version.creation_timestamp),
    }


def _flag(text: str | None) -> bool | None:
    return None if text is None else text == "true"


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def describe(chain: Chain) -> list[tuple[str, str]]:
    """The chain as lines to print: what, and what it was."""
    code, run, model = chain["code"], chain["run"], chain["model"]
    state = {True: " with uncommitted changes", False: "", None: ", changes not recorded"}[code["dirty"]]
    unknown = "not recorded"
    named = ", ".join(model["aliases"]) or "no alias"
    return [
        *((f"data, {row['role']}", f"{row['name']}  md5 {row['md5']}  {row['path']}") for row in chain["data"]),
        ("backbone", f"{chain['backbone']['name']}  sha256 {chain['backbone']['sha256'] or unknown}"),
        ("code", f"commit {code['commit'] or unknown}{state}"),
        *((link, chain[link]["hash"] or unknown) for link in ("settings", "protocol", "environment")),
        *((stage, f"run {run_id}" if run_id else unknown) for stage, run_id in chain["stages"].items()),
        ("run", f"{run['id']}  of {run['experiment']}, {run['status'].lower()} {run['finished'] or ''}".rstrip()),
        ("model", f"{model['name']} version {model['version']} ({named}), {model['verdict'] or 'not judged'}"),
        ("artifacts", f"sha256 {model['artifacts_sha256']}" if model["artifacts_sha256"] else unknown),
    ]
