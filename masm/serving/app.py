"""`masm serve`: replicas of the service on Ray Serve, which follow an alias of the registry."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle

from masm import registry
from masm.cluster import connected
from masm.data.images import ImageError
from masm.errors import UserError
from masm.serving.follower import Follower, Served
from masm.serving.results import NO_FACE, OK, ImageResult, VideoResult
from masm.serving.scorer import Outputs, Scorer
from masm.serving.shared import Shared
from masm.serving.uploads import find_faces, find_frames
from masm.serving.web import build_app
from masm.settings import Settings

Result = TypeVar("Result")

APPLICATION = "masm"
QUIET = {"enable_access_log": False}
IN_FLIGHT = 128
"""Requests that a replica has at a time; others wait in the proxy."""
PATIENCE = 300.0
"""Seconds that a request may take, with its upload."""
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that is away is asked again by the next poll, not for four minutes by one."""


class Swaps:
    """Tells the counts and the operator of a replica's swaps."""

    def __init__(self, shared: ActorHandle, replica: str) -> None:
        self._shared, self._replica = shared, replica

    def taken(self, version: str) -> None:
        """See `follower.Observer`."""
        self._shared.count.remote("taken", self._replica, version)
        self._shared.tell.remote(f"version {version} serves ({self._replica})")

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
        self._computing = ThreadPoolExecutor(1)  # one pass at a time: two would only share the processors
        self._forward.set_max_batch_size(self._serving.batch_size)
        self._forward.set_batch_wait_timeout_s(self._serving.batch_wait_ms / 1000)
        client = registry.connect(settings.mlflow)
        swaps = Swaps(shared, serve.get_replica_context().replica_tag)
        self.follower = Follower(client, uri, self._serving, swaps)
        self.follower.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, once the replica is there."""
        return build_app(self, self._serving, self._key)

    async def score_image(self, served: Served, data: bytes, shares: bool) -> ImageResult:
        """See `web.Service`."""
        try:
            faces = await self._in(self._decoding, find_faces, served.scorer, data)
        except ImageError as error:
            self._count("scored", "unusable", 0)
            return ImageResult(str(error))
        outputs = await self._outputs(served.scorer, [face.crop for face in faces], shares)
        self._count("scored", OK if faces else NO_FACE, len(faces))
        return served.scorer.judge_image(faces, outputs)

    async def gather_images(self, served: Served, images: list[bytes], shares: bool) -> list[ImageResult]:
        """See `web.Service`."""
        return await asyncio.gather(*(self.score_image(served, data, shares) for data in images))

    async def score_video(self, served: Served, data: bytes, shares: bool) -> VideoResult:
        """See `web.Service`."""
        longest = self._serving.max_video_seconds
        try:
            frames = await self._in(self._decoding, find_frames, served.scorer, data, longest)
        except ImageError as error:
            self._count("scored", NO_FACE if str(error) == NO_FACE else "unusable", 0)
            return VideoResult(str(error))
        outputs = await self._outputs(served.scorer, [frame.crop for frame in frames], shares)
        self._count("scored", OK, len(frames))
        return served.scorer.judge_video(frames, outputs)

    async def waiting_time(self, client: str) -> float:
        """See `web.Service`."""
        return 0.0 if self._serving.requests_per_minute is None else await self._shared.waiting_time.remote(client)

    async def versions(self) -> Mapping[str, str]:
        """See `web.Service`."""
        return await self._shared.versions.remote()

    async def metrics(self) -> bytes:
        """See `web.Service`."""
        return await self._shared.exposition.remote()

    def answered(self, path: str, status: int, seconds: float) -> None:
        """See `web.Service`."""
        self._count("request", path, status, seconds)

    def _count(self, what: str, *values: Any) -> None:
        self._shared.count.remote(what, *values)

    async def _outputs(self, scorer: Scorer, crops: list[np.ndarray], shares: bool) -> Outputs:
        """What the model says of a request's crops, which share their passes with other requests'."""
        logits = await asyncio.gather(*(self._forward((scorer, crop)) for crop in crops))
        if not (shares and crops):
            return Outputs(np.array(logits, np.float64))
        return Outputs(np.array(logits), await self._in(self._computing, scorer.shares, np.stack(crops)))

    @serve.batch
    async def _forward(self, items: list[tuple[Scorer, np.ndarray]]) -> list[float]:
        """Logits of crops; during a swap they are of two models."""
        logits = [0.0] * len(items)
        for scorer in {id(scorer): scorer for scorer, _ in items}.values():
            places = [place for place, (own, _) in enumerate(items) if own is scorer]
            crops = np.stack([items[place][1] for place in places])
            values = await self._in(self._computing, scorer.logits, crops)
            for place, value in zip(places, values.tolist(), strict=True):
                logits[place] = value
            self._count("batch", len(places))
        return logits

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)


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
        shared = ray.remote(Shared).options(num_cpus=0, max_restarts=-1).remote(serving.requests_per_minute)
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
    gpus = ray.cluster_resources().get("GPU", 0)
    return {"num_cpus": 1, "num_gpus": min(gpus / replicas, 1), "runtime_env": {"env_vars": MLFLOW_PATIENCE}}


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
    with running(settings, uri, key) as (address, shared):
        tell(f"{uri} at {address}")
        while not stopped.wait(1):
            for line in ray.get(shared.news.remote()):
                tell(line)
