"""The service over HTTP: what is asked and answered; who computes it is `masm.serving.replica`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from masm.serving.bodies import Upload, read_images, read_video
from masm.serving.follower import Follower, Served
from masm.serving.limits import BodyLimit, check_key, check_rate
from masm.serving.results import NO_FACE, OK, ImageResult, VideoResult, answer
from masm.settings import Serving

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {  # the page is one file and loads nothing
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}


class Service(Protocol):
    """What answers the requests."""

    follower: Follower

    async def score_video(self, served: Served, data: bytes, shares: bool) -> VideoResult:
        """Judge a video file's bytes."""

    async def gather_images(self, served: Served, images: list[Upload], shares: bool) -> list[ImageResult]:
        """Judge images, as many at a time as there are hands."""

    async def waiting_time(self, client: str) -> float:
        """Seconds that a client has to wait, by the rate limit; else 0, and it has one request less."""

    def charge(self, client: str, requests: int) -> None:
        """Count further requests of a client: the other images that it sent."""

    async def versions(self) -> Mapping[str, str]:
        """The version that each replica serves."""

    async def metrics(self) -> bytes:
        """All counts, in Prometheus' text format."""

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""


def build_app(service: Service, settings: Serving, key: str | None) -> FastAPI:
    """The routes of the service.

    Args:
        service: computes the answers.
        settings: the size of a body, and the folder whose files a request may name.
        key: what clients must send to have something scored; None for none.
    """

    async def admit(request: Request) -> None:
        check_rate(await service.waiting_time(_client(request)))  # first: guesses of the key are limited, too
        check_key(request, key)

    def served(version: str | None = None, protocol: str | None = None) -> Served:
        return _wanted(service.follower, version, protocol)

    app = FastAPI(title="MASM", docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    app.add_middleware(BodyLimit, limit=settings.max_bytes)
    app.add_middleware(Observed, answered=service.answered)
    app.add_exception_handler(RequestValidationError, _wrong_query)
    guarded, wanted = [Depends(admit)], Depends(served)

    @app.post("/score", dependencies=guarded)
    async def score(request: Request, model: Served = wanted, shares: bool = False) -> JSONResponse:
        images = await read_images(request, settings.media_root, settings.max_bytes)
        service.charge(_client(request), len(images) - 1)
        results = await service.gather_images(model, images, shares)
        _refuse_unusable([result.outcome for result in results])
        return JSONResponse({"model": describe(model), "images": [answer(result) for result in results]})

    @app.post("/score/video", dependencies=guarded)
    async def score_video(request: Request, model: Served = wanted, shares: bool = False) -> JSONResponse:
        result = await service.score_video(model, await read_video(request), shares)
        _refuse_unusable([result.outcome])
        return JSONResponse({"model": describe(model), "video": answer(result)})

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        state = health(service.follower) | {"replicas": dict(await service.versions())}
        return JSONResponse(state, 200 if state["ready"] else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await service.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(), headers=PAGE_HEADERS)

    return app


def _client(request: Request) -> str:
    return request.client.host if request.client else "unknown"


async def _wrong_query(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's list of faults in the query, as one sentence like all others."""
    assert isinstance(error, RequestValidationError)
    faults = (f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
    return JSONResponse({"detail": "; ".join(faults)}, 422)


def _wanted(follower: Follower, version: str | None, protocol: str | None) -> Served:
    """The model that serves, where it is the one that the request asks for."""
    model = follower.current
    if model is None:
        reason = follower.refusal.reason if follower.refusal else follower.trouble
        raise HTTPException(503, f"no model serves yet: {reason}")
    if version not in (None, model.version):
        raise HTTPException(
            404, f"version {version} does not serve: {model.name} version {model.version} does; ask for that one."
        )
    profile = model.scorer.cropper.profile.hash
    if protocol not in (None, profile):
        raise HTTPException(
            409,
            f"the crops are of protocol {protocol}, the model's is {profile}: cut the faces as the model's profile.",
        )
    return model


def _refuse_unusable(outcomes: list[str]) -> None:
    """Raise 422 where nothing of a request can be used; among usable images a bad one is a result."""
    if all(outcome not in (OK, NO_FACE) for outcome in outcomes):
        raise HTTPException(422, "; ".join(dict.fromkeys(outcomes)))


def describe(model: Served) -> dict[str, Any]:
    """Which model answers, and from which score on it says fake."""
    scorer = model.scorer
    return {
        "name": model.name,
        "version": model.version,
        "protocol": scorer.cropper.profile.hash,
        "threshold": {level: decision.threshold for level, decision in scorer.decisions.items()},
    }


def health(follower: Follower) -> dict[str, Any]:
    """Whether a replica can answer, by which version, which one it refused, and whether it sees the registry."""
    model, refusal = follower.current, follower.refusal
    return {
        "ready": model is not None,
        "model": None if model is None else describe(model),
        "refused": None if refusal is None else {"version": refusal.version, "reason": refusal.reason},
        "registry": follower.trouble or "ok",
    }


class Observed:
    """ASGI middleware: tells how each request was answered, and how long it took."""

    def __init__(self, app: ASGIApp, answered: Callable[[str, int, float], None]) -> None:
        self._app, self._answered = app, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # By route: an address that a scanner makes up must not become a label.
            route = getattr(scope.get("route"), "path", "other")
            self._answered(route, status, time.perf_counter() - begun)
