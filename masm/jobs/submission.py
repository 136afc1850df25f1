"""A stage that is sent to a cluster as a job, once nothing is known that would let it fail there."""

from __future__ import annotations

import difflib
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from ray.util.state import list_nodes
from ray.util.state.common import NodeState
from ray.util.state.exception import RayStateApiException

from masm.cluster import first_line, lack, lone_gpus
from masm.data.remote import check_pushed
from masm.environment import LOCK
from masm.errors import UserError
from masm.jobs.client import Client, Submitted, connect
from masm.jobs.shipping import check_reach, check_study, collect
from masm.settings import Settings, job_environment, job_server

STAGES: dict[str, Callable[[Settings], int]] = {
    "search": lambda settings: settings.search.concurrent,
    "train": lambda settings: settings.train.workers.least,
}
"""The stages that leave their result in ray.storage, and the workers of one CPU that each needs."""
HERE = "it writes its result beside params.yaml, and a job's folder is lost: run `dvc repro {stage}`"
ON_CLUSTER = HERE + ", which works on the cluster of RAY_ADDRESS from one of its nodes"
REFUSED = {"ingest": ON_CLUSTER, "validate": HERE, "evaluate": ON_CLUSTER, "promote": HERE}
"""Why the other stages are no jobs."""
AGENT_SECONDS = 60.0
"""After its start a cluster answers before it can take jobs."""


def submit(
    settings: Settings, stage: str, address: str | None, install: bool, say: Callable[[str], None]
) -> Submitted:
    """Send a stage to a cluster as a job.

    Everything that would let it fail there is looked at before: see the errors.

    Args:
        settings: of the workspace.
        stage: a key of STAGES.
        address: of the job server, such as http://HOST:8265; None for that of the environment, of ray.address, or of
            a cluster on this machine.
        install: whether each node installs requirements.lock first, by Ray's uv plugin.
        say: told what the submitter should know, in a line.

    Raises:
        UserError: an unknown stage or one that is no job; dvc.lock or data that the remote does not have; an address
            where no cluster is, or one with another Ray, with too few CPUs, or out of reach of remote and storage; too
            much to upload.
    """
    workers = _workers(settings, stage)
    shipment = collect(settings)
    client = connect(address or job_server(settings.ray))
    nodes = _nodes(client.get_address())
    for line in _resources(stage, workers, [node.resources_total for node in nodes], settings.ray.wait_seconds):
        say(line)
    elsewhere = not all(_is_here(node.node_ip) for node in nodes)
    check_reach(settings, shipment, elsewhere)
    if stage == "search":
        check_study(settings, elsewhere)
    check_pushed(settings.root, stage)
    if warning := lost_runs(settings.mlflow.tracking_uri, elsewhere):
        say(warning)
    command = f"python -m masm.environment && cd {quote(shipment.workspace)} && python -m pipelines.{stage}"
    with tempfile.TemporaryDirectory() as folder:
        shipment.write(Path(folder))
        job = {
            "submission_id": f"raysubmit_{secrets.token_hex(8)}",
            "entrypoint": command,
            "runtime_env": runtime_environment(folder, install),
            "metadata": {"masm.stage": stage, "masm.workspace": str(settings.root)},
        }
        return Submitted(_accepted(client, job), client.get_address())


def _workers(settings: Settings, stage: str) -> int:
    """How many workers a stage needs, where it can be a job."""
    name = stage.partition("@")[0]
    if name in REFUSED:
        raise UserError(f"{stage} is no job: {REFUSED[name].format(stage=stage)}.")
    if stage not in STAGES:
        near = difflib.get_close_matches(stage, [*STAGES, *REFUSED], n=1)
        raise UserError(
            f"there is no stage {stage!r}"
            + (f"; did you mean {near[0]}?" if near else f": {', '.join(STAGES)} can be jobs.")
        )
    return STAGES[stage](settings)


def _nodes(address: str) -> list[NodeState]:
    """The nodes of a cluster that are alive; one that has just started knows of none yet, not even of its head."""
    deadline = time.monotonic() + AGENT_SECONDS
    try:
        alive = [("state", "=", "ALIVE")]
        while not (nodes := list_nodes(address, limit=10_000, filters=alive)) and time.monotonic() < deadline:
            time.sleep(1)
        return nodes
    except (RayStateApiException, OSError, RuntimeError) as error:
        raise UserError(f"the cluster at {address} does not say which nodes it has ({first_line(error)}).") from None


def _resources(stage: str, workers: int, nodes: Sequence[Mapping[str, float]], wait_seconds: float) -> list[str]:
    """What to know about a cluster's room for a stage.

    Raises:
        UserError: it has too little, and does not add nodes.
    """
    missing = lack(workers, nodes)
    if missing and not wait_seconds:
        raise UserError(
            f"{missing}: add nodes, lower train.workers or search.concurrent, or set ray.wait_seconds where the "
            "cluster adds nodes by itself."
        )
    lines = [f"{missing}: the job waits up to {wait_seconds:g} s for more (ray.wait_seconds)"] if missing else []
    lone = None if stage == "search" else lone_gpus(workers, nodes)  # trials share GPUs
    return lines + ([lone] if lone else [])


def lost_runs(tracking_uri: str, elsewhere: bool) -> str | None:
    """A warning where a job's MLflow runs come to nobody.

    Args:
        tracking_uri: that the job gets.
        elsewhere: whether the cluster has other machines than this one.
    """
    if tracking_uri.startswith("sqlite:"):
        return (
            "unless the nodes have MLFLOW_TRACKING_URI, the job's MLflow runs are lost with its folder: set it to a "
            "server to have them"
        )
    host = urlsplit(tracking_uri).hostname or ""
    if elsewhere and (host in ("localhost", "::1") or host.startswith("127.")):
        return (
            f"the job's MLflow runs do not arrive: {host} is another machine on each node; set MLFLOW_TRACKING_URI "
            "to an address of the server that they reach"
        )
    return None


def _is_here(ip: str) -> bool:
    """Whether an address is one of this machine: only then can a server of ours have it."""
    try:
        socket.create_server((ip, 0), family=socket.AF_INET6 if ":" in ip else socket.AF_INET).close()
    except OSError:
        return False
    return True


def runtime_environment(folder: str, install: bool) -> dict[str, Any]:
    """Ray's `runtime_env` of a job.

    Args:
        folder: its files.
        install: whether the packages of requirements.lock go into an environment of its own.
    """
    variables = {**job_environment(), "PYTHONUNBUFFERED": "1"}
    found: dict[str, Any] = {"working_dir": folder, "env_vars": variables}
    if install:  # the lock is among the files: its text in `packages` would go along with every task
        packages = [f"-r ${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{LOCK}"]
        found["uv"] = {"packages": packages, "uv_pip_install_options": ["--require-hashes"]}
        found["config"] = {"setup_timeout_seconds": 3600}
    return found


def _accepted(client: Client, job: dict[str, Any]) -> str:
    """Submit a job, once the cluster takes any; its submission id.

    It is ours, so that a job whose acceptance did not come back, as through a proxy that waits less, can be followed.
    """
    number, deadline = job["submission_id"], time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return client.submit_job(**job)
        except (OSError, RuntimeError) as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                with suppress(OSError, RuntimeError):
                    return client.get_job_info(number).submission_id or number
                raise UserError(
                    f"the cluster at {client.get_address()} did not take the job: {first_line(error)}; if it comes "
                    f"through all the same, it is {number}."
                ) from None
            time.sleep(2)
