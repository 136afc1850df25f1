"""What the service lets in: how much, how often, and from whom."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAINED = 2**24
"""Bytes over the limit that are read and dropped: a client that is cut off while it sends may not see the answer."""
MOST_CLIENTS = 10_000
"""Addresses that the rate limit remembers before it forgets those that have all their requests left."""


class RateLimit:
    """A token bucket for each client: a minute's requests at once, then one whenever its share of a minute is over.

    Of a request that brings more than one image the others are charged once they have been read, even where that is
    more than is left: then the client waits the longer.

    Args:
        per_minute: requests; None for any number.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def admit(self, client: str) -> float:
        """Take one request of a client; return 0, or the seconds until it may ask again."""
        if self._per_minute is None:
            return 0.0
        now = self._clock()
        left = self._left(client, now)
        if left < 1:
            return (1 - left) * 60 / self._per_minute
        self.charge(client, 1)
        return 0.0

    def charge(self, client: str, requests: int) -> None:
        """Take requests of a client, be they left or not."""
        if self._per_minute is None:
            return
        now = self._clock()
        self._buckets[client] = (self._left(client, now) - requests, now)
        if len(self._buckets) > MOST_CLIENTS:
            kept = (name for name in self._buckets if self._left(name, now) < self._per_minute)
            self._buckets = {name: self._buckets[name] for name in kept}

    def _left(self, client: str, now: float) -> float:
        assert self._per_minute is not None
        left, before = self._buckets.get(client, (float(self._per_minute), now))
        return min(left + (now - before) * self._per_minute / 60, self._per_minute)


def check_key(request: Request, key: str | None) -> None:
    """Raise 401 where the service has a key and the request does not bring it as `Authorization: Bearer KEY`."""
    if key is None:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
        raise HTTPException(
            401, "this service asks for a key: send it as `Authorization: Bearer KEY`.", {"WWW-Authenticate": "Bearer"}
        )


def check_rate(seconds: float) -> None:
    """Raise 429 where a client has to wait."""
    if seconds > 0:
        wait = math.ceil(seconds)
        raise HTTPException(
            429, f"too many requests from this address: ask again in {wait} s.", {"Retry-After": str(wait)}
        )


class BodyLimit:
    """ASGI middleware: reading more of a body than the limit raises 413."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a body that ends at the limit."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                await _drain(receive, message)
                raise HTTPException(
                    413, f"the body has more than {self._limit} bytes, the most that this service takes: send less."
                )
            return message

        await self._app(scope, limited, send)


async def _drain(receive: Receive, message: Message) -> None:
    dropped = 0
    while message.get("more_body", False) and dropped < DRAINED:
        message = await receive()
        dropped += len(message.get("body", b""))
