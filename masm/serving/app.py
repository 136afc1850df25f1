"""`masm serve`: replicas of the service on Ray Serve, which follow an alias of the registry."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError

from masm import registry
from masm.cluster import connected
from masm.data.images import ImageError
from masm.errors import UserError
from masm.serving.batching import Batcher
from masm.serving.bodies import Upload
from masm.serving.follower import Follower, Served
from masm.serving.results import NO_FACE, OK, ImageResult, VideoResult
from masm.serving.scorer import Outputs, Scorer
from masm.serving.shared import Shared
from masm.serving.web import build_app
from masm.settings import Serving, Settings

Result = TypeVar("Result")

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


class Swaps:
    """Tells the counts and the operator of a replica's swaps."""

    def __init__(self, shared: ActorHandle, replica: str) -> None:
        self._shared, self._replica = shared, replica

    def taken(self, version: str) -> None:
        """See `follower.Observer`."""
        self._shared.tell.remote(f"version {version} serves ({self._replica})")

    def serves(self, version: str) -> None:
        """See `follower.Observer`."""
        self._shared.count.remote("serves", self._replica, version)

    def refused(self, version: str, reason: str) -> None:
        """See `follower.Observer`."""
        self._shared.count.remote("refused")
        self._shared.tell.remote(f"version {version} is refused ({self._replica}): {reason}")


class Service:
    """A replica: a model, its follower, and the threads that decode and compute; see `web.Service`."""

    def __init__(self, settings: Settings, uri: str, shared: ActorHandle, key: str | None) -> None:
        self._serving, self._shared, self._key = settings.serving, shared, key
        threads = max((os.cpu_count() or 1) // self._serving.replicas, 1)
        torch.set_num_threads(threads)
        self._decoding = ThreadPoolExecutor(threads)
        self._computing = ThreadPoolExecutor(1)
        wait = self._serving.batch_wait_ms / 1000
        self._batcher = Batcher(self._serving.batch_size, wait, lambda crops: self._count("batch", crops))
        client = registry.connect(settings.mlflow)
        swaps = Swaps(shared, serve.get_replica_context().replica_tag)
        self.follower = Follower(client, uri, self._serving, swaps)
        self.follower.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, once the replica is there."""
        return build_app(self, self._serving, self._key)

    def __del__(self) -> None:
        """Ray Serve calls it when it ends a replica."""
        with suppress(AttributeError):  # it has not come so far
            self.follower.close()

    async def score_image(self, served: Served, upload: Upload, shares: bool) -> ImageResult:
        """Judge an image."""
        try:
            faces = await self._in(self._decoding, lambda: served.scorer.find_in_image(upload()))
        except ImageError as error:
            self._count("scored", "unusable", 0)
            return ImageResult(str(error))
        outputs = await self._outputs(served.scorer, [face.crop for face in faces], shares)
        self._count("scored", OK if faces else NO_FACE, len(faces))
        return served.scorer.judge_image(faces, outputs)

    async def gather_images(self, served: Served, images: list[Upload], shares: bool) -> list[ImageResult]:
        """See `web.Service`."""
        return await asyncio.gather(*(self.score_image(served, upload, shares) for upload in images))

    async def score_video(self, served: Served, data: bytes, shares: bool) -> VideoResult:
        """See `web.Service`."""
        longest = self._serving.max_video_seconds
        try:
            frames = await self._in(self._decoding, served.scorer.find_in_video, data, longest)
        except ImageError as error:
            self._count("scored", NO_FACE if str(error) == NO_FACE else "unusable", 0)
            return VideoResult(str(error))
        outputs = await self._outputs(served.scorer, [frame.crop for frame in frames], shares)
        self._count("scored", OK, len(frames))
        return served.scorer.judge_video(frames, outputs)

    async def waiting_time(self, client: str) -> float:
        """See `web.Service`."""
        if self._serving.requests_per_minute is None:
            return 0.0
        return await _answer(self._shared.waiting_time.remote(client), 0.0)

    def charge(self, client: str, requests: int) -> None:
        """See `web.Service`."""
        if self._serving.requests_per_minute is not None and requests:
            self._shared.charge.remote(client, requests)

    async def versions(self) -> Mapping[str, str]:
        """See `web.Service`."""
        return await _answer(self._shared.versions.remote(), {})

    async def metrics(self) -> bytes:
        """See `web.Service`."""
        return await _answer(self._shared.exposition.remote(), b"")

    def answered(self, path: str, status: int, seconds: float) -> None:
        """See `web.Service`."""
        self._count("request", path, status, seconds)

    def _count(self, what: str, *values: Any) -> None:
        self._shared.count.remote(what, *values)

    async def _outputs(self, scorer: Scorer, crops: list[np.ndarray], shares: bool) -> Outputs:
        """What the model says of a request's crops, which share their passes with other requests'."""
        logits = await asyncio.gather(*(asyncio.wrap_future(self._batcher.logit(scorer, crop)) for crop in crops))
        if not (shares and crops):
            return Outputs(np.array(logits, np.float64))
        return Outputs(np.array(logits), await self._in(self._computing, scorer.shares, np.stack(crops)))

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)


async def _answer(asked: Awaitable[Result], otherwise: Result) -> Result:
    """What the actor of the counts says; while it is started again, requests are answered without it."""
    try:
        return await asked
    except RayError:
        return otherwise


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
    with connected(settings.ray, serving.replicas):
        forgotten_after = max(LOST_POLLS * serving.poll_seconds, LOST_SECONDS)
        actor = ray.remote(Shared).options(num_cpus=0, max_restarts=-1)
        shared = actor.remote(serving.requests_per_minute, forgotten_after)
        options = {"host": serving.host, "port": serving.port, "request_timeout_s": PATIENCE}
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=QUIET)
        replica = serve.deployment(serve.ingress()(Service)).options(
            num_replicas=serving.replicas,
            max_ongoing_requests=IN_FLIGHT,
            graceful_shutdown_timeout_s=10,
            ray_actor_options=_resources(serving.replicas),
            logging_config=QUIET,
        )
        try:
            _deploy(replica.bind(settings, uri, shared, key))
            yield f"http://{serving.host}:{serving.port}", shared
        finally:
            _end(settings.ray.address)


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


def gpu_share(replicas: int, gpus: int) -> float:
    """The part of one GPU that each replica gets, so that all of them have a place: a replica is never on two."""
    return 1 / math.ceil(replicas / gpus) if gpus else 0.0


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
