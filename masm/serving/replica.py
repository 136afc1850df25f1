"""A replica of the service: a model, its follower, and the threads that decode and compute."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError

from masm import registry
from masm.data.images import ImageError
from masm.serving.batching import Batcher
from masm.serving.bodies import Upload
from masm.serving.follower import Follower, Served
from masm.serving.results import NO_FACE, OK, ImageResult, VideoResult
from masm.serving.scorer import Outputs, Scorer
from masm.serving.web import build_app
from masm.settings import Settings

Result = TypeVar("Result")


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
