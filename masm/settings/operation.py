"""Sections of params.yaml about where the work runs, and how a model is served and watched."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from masm.errors import UserError
from masm.settings.section import Section, Share

OPERATION = ("mlflow", "ray", "serving", "monitor")
"""Sections that say where the work runs and how a model is served and watched, not what comes out."""


class Monitor(Section):
    """When `masm monitor` says that a batch has drifted."""

    psi: float = Field(default=0.2, gt=0, description="population stability index of the scores that counts as drift")
    significance: Share = Field(default=0.01, description="share of batches without drift that are called drifted")


class Mlflow(Section):
    """Where runs are recorded and models registered."""

    tracking_uri: str = Field(description="MLFLOW_TRACKING_URI goes before it")
    artifacts: str = Field(description="a folder or URI; a server with its own store ignores it")
    experiment: str
    model: str = Field(description="the registered model's name")


class Ray(Section):
    """Where the work runs."""

    address: str | None = Field(default=None, description="a cluster; null starts one in the process")
    storage: str = Field(description="an absolute path or URI that every node reaches")
    wait_seconds: float = Field(default=0, ge=0, description="for nodes that an autoscaling cluster has yet to add")


class Serving(Section):
    """The service of `masm serve`; the key that it asks for is MASM_API_KEY of the environment."""

    host: str = Field(default="127.0.0.1", description="0.0.0.0 lets other machines in: set MASM_API_KEY then")
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: int = Field(default=1, ge=1, description="processes that hold the model; they share the processors")
    batch_size: int = Field(default=8, ge=1, description="crops of one pass, of several requests")
    batch_wait_ms: float = Field(default=5, ge=0, description="that a crop waits for others, at most")
    poll_seconds: float = Field(default=2, gt=0, description="between looks at the registry")
    max_bytes: int = Field(default=2**25, ge=1, description="of a request's body")
    max_pixels: int = Field(default=2**26, ge=1, description="of an image, or of a video's frame")
    max_video_seconds: float = Field(default=300, gt=0)
    requests_per_minute: int | None = Field(default=None, ge=1, description="of each client's address")
    media_root: Path | None = Field(
        default=None, description="the folder whose files a request may name; MASM_MEDIA_ROOT goes before it"
    )


JOB_VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MASM_STUDY_STORAGE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
    "HF_TOKEN",
)
"""Addresses and secrets that a job on a cluster needs like the one who submits it."""


def job_server(ray: Ray) -> str:
    """Where jobs are taken: RAY_API_SERVER_ADDRESS, or the cluster's address, or this machine at Ray's own port."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or ray.address or "http://127.0.0.1:8265"


def job_environment() -> dict[str, str]:
    """Those of JOB_VARIABLES that the environment has; the values are secrets, and for the job alone."""
    return {name: os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)}


def api_key() -> str | None:
    """MASM_API_KEY, which the service asks its clients for; None where it asks for none.

    Raises:
        UserError: it has letters that no client can send in a header.
    """
    key = os.environ.get("MASM_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UserError("MASM_API_KEY has letters outside of printable ASCII, which cannot be sent: choose another.")
    return key


def media_root() -> Path | None:
    """MASM_MEDIA_ROOT: the folder whose files a request to a served model may name; None where it may name none."""
    folder = os.environ.get("MASM_MEDIA_ROOT")
    return Path(folder) if folder else None
