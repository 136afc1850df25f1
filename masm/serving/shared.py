"""What the replicas of the service have in common; without torch, as it is a process of its own."""

from __future__ import annotations

from collections import deque
from typing import Any

from masm.serving.limits import RateLimit
from masm.serving.telemetry import Telemetry

NEWS = 1000
"""Lines that are kept where nobody asks for them, as in a service that a cluster runs by itself."""


class Shared:
    """What the replicas have in common, as an actor: the rate limit and the counts."""

    def __init__(self, requests_per_minute: int | None, forgotten_after: float) -> None:
        self._limit, self._telemetry = RateLimit(requests_per_minute), Telemetry(forgotten_after)
        self._news: deque[str] = deque(maxlen=NEWS)

    def waiting_time(self, client: str) -> float:
        """See `RateLimit.admit`."""
        return self._limit.admit(client)

    def charge(self, client: str, requests: int) -> None:
        """See `RateLimit.charge`."""
        self._limit.charge(client, requests)

    def tell(self, line: str) -> None:
        """Say something to the operator."""
        self._news.append(line)

    def news(self) -> list[str]:
        """What was told since the last call."""
        told = list(self._news)
        self._news.clear()
        return told

    def count(self, what: str, *values: Any) -> None:
        """Call a method of `Telemetry`."""
        getattr(self._telemetry, what)(*values)

    def versions(self) -> dict[str, str]:
        """See `Telemetry.versions`."""
        return self._telemetry.versions()

    def exposition(self) -> bytes:
        """See `Telemetry.exposition`."""
        return self._telemetry.exposition()
