"""`masm serve`: replicas of the service on Ray Serve, which follow an alias of the registry."""

from __future__ import annotations

import difflib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError

from masm import registry
from masm.cluster import connected, gpu_share
from masm.errors import UserError
from masm.serving.replica import Service
from masm.serving.shared import Shared
from masm.settings import Serving, Settings, api_key, load_settings

APPLICATION = "masm"
QUIET = {"enable_access_log": False}
IN_FLIGHT = 128
"""Requests that a replica has at a time; others wait in the proxy."""
PATIENCE = 300.0
"""Seconds that a request may take, with its upload."""
LOST_POLLS, LOST_SECONDS = 10, 60.0
"""A replica that has not reported for so many polls, and so long, is lost; a large model takes a while to load."""
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that is away is asked again by the next poll, not for four minutes by one."""


@contextmanager
def running(settings: Settings, uri: str, key: str | None) -> Iterator[tuple[str, ActorHandle]]:
    """The service for as long as the context lasts: its address, and what its replicas share.

    Args:
        settings: sections `serving`, `mlflow` and `ray`.
        uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        key: what clients must send; None for none.

    Raises:
        UserError: there is no such version, the port is taken, or Ray cannot start the service.
    """
    serving = settings.serving
    registry.find_version(registry.connect(settings.mlflow), uri)
    _check_port(serving.host, serving.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with connected(settings.ray, serving.replicas, whole_gpus=False):
        shared = _share(serving)
        options = {"host": serving.host, "port": serving.port, "request_timeout_s": PATIENCE}
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)
        try:
            _deploy(_bind(settings, uri, shared, key))
            yield f"http://{serving.host}:{serving.port}", shared
        finally:
            _end(settings.ray.address)


def build(arguments: dict[str, str]) -> serve.Application:
    """The application for `serve deploy` and KubeRay's RayService, by import_path masm.serving.app:build.

    What replicas share outlives the process that builds; a later build with the same limits finds it again.

    Args:
        arguments: `params`, a params.yaml that every node has; `model`, a models:/ address, else the champion.

    Raises:
        UserError: another argument.
    """
    for name in arguments.keys() - {"params", "model"}:
        near = difflib.get_close_matches(name, ["params", "model"], n=1)
        raise UserError(f"there is no argument {name!r}; did you mean {near[0] if near else 'params or model'}?")
    if api_key() is None:
        logging.getLogger("ray.serve").warning("whoever reaches the service is answered: set MASM_API_KEY")
    settings = load_settings(arguments.get("params", "params.yaml"))
    uri = arguments.get("model", f"models:/{settings.mlflow.model}@champion")
    name = f"{APPLICATION}-{settings.serving.requests_per_minute}-{settings.serving.poll_seconds:g}"
    shared = _share(settings.serving, name=name, namespace=APPLICATION, lifetime="detached", get_if_exists=True)
    return _bind(settings, uri, shared, api_key())


def _share(serving: Serving, **options: Any) -> ActorHandle:
    """The actor that holds what replicas have to know of each other."""
    forgotten_after = max(LOST_POLLS * serving.poll_seconds, LOST_SECONDS)
    actor = ray.remote(Shared).options(num_cpus=0, max_restarts=-1, **options)
    return actor.remote(serving.requests_per_minute, forgotten_after)


def _bind(settings: Settings, uri: str, shared: ActorHandle, key: str | None) -> serve.Application:
    """The one deployment."""
    replica = serve.deployment(serve.ingress()(Service)).options(
        num_replicas=settings.serving.replicas,
        max_ongoing_requests=IN_FLIGHT,
        graceful_shutdown_timeout_s=10,
        ray_actor_options=_resources(settings.serving.replicas),
        logging_config=QUIET,
    )
    return replica.bind(settings, uri, shared, key)


def _deploy(application: serve.Application) -> None:
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:  # a replica does not come up
        raise UserError(f"the service does not start: {error}") from None


def _end(cluster: str | None) -> None:
    """Take the service away; on a cluster others' applications stay."""
    if cluster is None:
        serve.shutdown()
    else:
        serve.delete(APPLICATION)


def _resources(replicas: int) -> dict[str, Any]:
    share = gpu_share(replicas, int(ray.cluster_resources().get("GPU", 0)))
    return {"num_cpus": 1, "num_gpus": share, "runtime_env": {"env_vars": MLFLOW_PATIENCE}}


def _check_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(
            f"the service cannot listen at {host}:{port} ({error.strerror}): set serving.host and serving.port."
        ) from None


def run(settings: Settings, uri: str, key: str | None, tell: Callable[[str], None]) -> None:
    """Serve until the process is interrupted or terminated; then requests in work are answered.

    Args:
        settings, uri, key: see `running`.
        tell: gets the address, and a line for every swap.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    if warning := warn_of_strangers(settings.serving, key):
        tell(warning)
    with running(settings, uri, key) as (address, shared):
        tell(f"{uri} at {address}")
        if not _listens(settings.serving):
            tell(f"nothing answers at {address}: the cluster's Ray Serve is elsewhere, or was started otherwise.")
        while not stopped.wait(1):
            with suppress(RayError):  # the actor is started again
                for line in ray.get(shared.news.remote()):
                    tell(line)


def warn_of_strangers(serving: Serving, key: str | None) -> str | None:
    """What to say to an operator whose service answers everybody, who may not have meant it."""
    if key is not None or serving.host in ("localhost", "::1") or serving.host.startswith("127."):
        return None
    return f"whoever reaches {serving.host}:{serving.port} is answered: set MASM_API_KEY, or serving.host: 127.0.0.1."


def _listens(serving: Serving) -> bool:
    try:
        socket.create_connection((serving.host, serving.port), 10).close()
    except OSError:
        return False
    return True
