"""What Prometheus reads from the service: one count over all of its replicas."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """Counters of requests, batches, images and swaps, and the versions that serve.

    Args:
        forgotten_after: seconds after which a replica that does not report is lost.
        clock: seconds that only grow.
    """

    def __init__(self, forgotten_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._forgotten_after, self._clock = forgotten_after, clock
        self._registry = own = CollectorRegistry()
        self._requests = Counter("masm_requests", "Requests", ["path", "status"], registry=own)
        self._seconds = Histogram(
            "masm_request_seconds", "From a request's head to its answer", ["path"], buckets=LATENCIES, registry=own
        )
        self._batches = Histogram("masm_batch_size", "Crops of a pass", buckets=SIZES, registry=own)
        self._images = Counter("masm_images", "Images and videos by outcome", ["outcome"], registry=own)
        self._faces = Counter("masm_faces", "Faces that were found and scored", registry=own)
        self._swaps = Counter("masm_swaps", "New versions: taken or refused", ["result"], registry=own)
        self._model = Gauge("masm_model_info", "The version that serves", ["replica", "version"], registry=own)
        self._versions: dict[str, str] = {}
        self._heard: dict[str, float] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, crops: int) -> None:
        """Count a pass of the model."""
        self._batches.observe(crops)

    def scored(self, outcome: str, faces: int) -> None:
        """Count an image or a video: "ok", "no face" or "unusable"."""
        self._images.labels(outcome).inc()
        self._faces.inc(faces)

    def serves(self, replica: str, version: str) -> None:
        """Note which version a replica serves, which it reports again and again; its first one is no swap."""
        former = self._versions.get(replica)
        if former not in (None, version):
            self._swaps.labels("taken").inc()
            self._model.remove(replica, former)
        self._versions[replica], self._heard[replica] = version, self._clock()
        self._model.labels(replica, version).set(1)

    def refused(self) -> None:
        """Count a version that a replica did not take."""
        self._swaps.labels("refused").inc()

    def versions(self) -> dict[str, str]:
        """The version that each replica serves."""
        self._forget()
        return dict(self._versions)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        self._forget()
        return generate_latest(self._registry)

    def _forget(self) -> None:
        oldest = self._clock() - self._forgotten_after
        for replica in [replica for replica, heard in self._heard.items() if heard < oldest]:
            del self._heard[replica]
            self._model.remove(replica, self._versions.pop(replica))
