"""`masm serve` as an operator starts it, over a registry of tiny detectors, and clients for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import mlflow
import yaml
from mlflow import MlflowClient

from masm import registry
from masm.data.faces import CropProfile
from masm.detector import Detector
from masm.serving.packaging import ModelFiles
from masm.settings import Settings, load_settings
from tests.ports import free_port
from tests.serving.workspace import PROFILE, ROOT, random_crop, save

START = 200
SERVE = "from masm.cli import main; main()"


def make_registry(folder: Path, *detectors: Detector, **serving: Any) -> Settings:
    """An MLflow that holds these detectors as versions 1, 2, ...; version 1 is champion."""
    settings = configure(make_settings(folder), poll_seconds=0.5, **serving)
    for number, detector in enumerate(detectors, 1):
        register(settings, detector, folder / f"detector{number}")
    set_champion(settings, "1")
    return settings


def register(settings: Settings, detector: Detector, folder: Path, profile: CropProfile = PROFILE) -> None:
    """Save a detector in a folder, and make it the next version; the registry seals its files."""
    save(detector, folder, profile)
    registry.connect(settings.mlflow)
    record = registry.Record({}, {}, {}, (), (), (), {})
    run = registry.log_run(record, ModelFiles(folder, None, random_crop(0)))
    mlflow.register_model(run.model_uri, settings.mlflow.model, tags=dict(run.digests))


def make_settings(folder: Path) -> Settings:
    """params.yaml with an MLflow of its own in a folder."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["mlflow"] |= {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "artifacts": str(folder / "artifacts")}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return load_settings(folder / "params.yaml")


def configure(settings: Settings, **serving: Any) -> Settings:
    """Set keys of params.yaml's section `serving`."""
    path = settings.root / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["serving"] |= serving
    path.write_text(yaml.safe_dump(tree))
    return load_settings(path)


def set_champion(settings: Settings, version: str) -> MlflowClient:
    """Move the alias as a person does in MLflow's UI."""
    client = registry.connect(settings.mlflow)
    client.set_registered_model_alias(settings.mlflow.model, "champion", version)
    return client


@contextmanager
def started(settings: Settings, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """`masm serve` in a process of its own, until it is interrupted; its address.

    It has to end by itself, and with 0, when it is interrupted.
    """
    own = ("MLFLOW_TRACKING_URI", "MASM_MEDIA_ROOT", "RAY_ADDRESS", "RAY_AUTH_MODE")
    settings = configure(settings, port=free_port())
    kept = {name: value for name, value in os.environ.items() if name not in own}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", "--params", str(settings.root / "params.yaml")],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", **(environment or {})},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{settings.serving.port}"
    try:
        _wait_until_ready(process, address)
        yield address
        process.send_signal(signal.SIGINT)
        assert process.wait(180) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert process.poll() is None, "masm serve ended"
        try:
            answer = httpx.get(f"{address}/healthz", timeout=5)
            if answer.status_code == 200:
                return
            refused = answer.headers["content-type"] == "application/json" and answer.json()["refused"]
            assert not refused, refused
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"masm serve was not ready within {START} s")


@dataclass
class Load:
    """Clients that send one image after the other, each as soon as it has its answer, until the context ends.

    Attributes:
        answers: time of the answer, seconds that it took, status and JSON body.
        failures: requests without an answer.
    """

    address: str
    image: bytes
    clients: int
    headers: Mapping[str, str] = field(default_factory=dict)
    answers: list[tuple[float, float, int, Any]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        headers = {"Content-Type": "image/png", **self.headers}
        with httpx.Client(base_url=self.address, headers=headers, timeout=60) as client:
            while not self._stopped.is_set():
                begun = time.perf_counter()
                try:
                    answer = client.post("/score", content=self.image)
                    now = time.perf_counter()
                    self.answers.append((now, now - begun, answer.status_code, answer.json()))
                except httpx.TransportError as error:
                    self.failures.append(error)
