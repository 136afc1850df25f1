"""The service as KubeRay starts it, on a cluster that asks for a token, and the metrics of both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from tests.infra.manifests import INFRA, read
from tests.infra.metrics import check, exposed, expressions, series
from tests.ports import free_port
from tests.serving.service import make_registry
from tests.serving.workspace import ROOT, own_address, random_crop, tiny_detector
from tests.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]
KEY, TOKEN = "open sesame", "t" * 40
APPLICATIONS = "/api/serve/applications/"


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    names = ("port", "dashboard-port", "metrics-export-port", "dashboard-agent-listen-port", "ray-client-server-port")
    return {name: free_port() for name in names}


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml beside an MLflow whose champion is a tiny detector."""
    with own_address():
        return make_registry(tmp_path_factory.mktemp("service"), tiny_detector(1)).root / "params.yaml"


@pytest.fixture(scope="module")
def dashboard(params: Path, ports: dict[str, int]) -> Iterator[httpx.Client]:
    """A client of the dashboard of a head node, with the token."""
    scripts = Path(sys.executable).parent
    own = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "MASM_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{scripts}:{environment['PATH']}"
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = [str(scripts / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=1", *options]
    folder = tempfile.TemporaryDirectory(dir="/tmp")  # Ray's sockets lie in it: their paths are short, or fail
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000", f"--temp-dir={folder.name}"]
    head = subprocess.Popen(
        command, cwd=params.parent, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=300) as client:
            wait_for("Ray's dashboard", lambda: _status(client, APPLICATIONS) == 200, process=head)
            yield client
    finally:  # `ray stop` would end every Ray of this machine; told to end, these wait 30 s for each other
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        folder.cleanup()


def _status(client: httpx.Client, path: str) -> int:
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return 0


@pytest.fixture(scope="module")
def service(dashboard: httpx.Client, params: Path) -> Iterator[httpx.Client]:
    """A client of the service that infra/ray/service.yaml describes, on another port and with these params."""
    config: dict[str, Any] = yaml.safe_load(read("ray/service.yaml")["spec"]["serveConfigV2"])
    config["http_options"] |= {"host": "127.0.0.1", "port": free_port()}
    config["applications"][0]["args"] = {"params": str(params)}
    assert dashboard.put(APPLICATIONS, json=config).status_code == 200
    key = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{config['http_options']['port']}", headers=key, timeout=300
    ) as client:
        wait_for("the service", lambda: _status(client, "/healthz") == 200)
        yield client


def test_a_cluster_without_the_token_takes_no_work(dashboard: httpx.Client) -> None:
    for headers in ({}, {"Authorization": "Bearer guess"}):
        assert httpx.put(f"{dashboard.base_url}{APPLICATIONS}", json={}, headers=headers).status_code in (401, 403)
        assert httpx.post(f"{dashboard.base_url}/api/jobs/", json={}, headers=headers).status_code in (401, 403)


def test_the_deployment_has_the_name_by_which_gpus_are_given_to_it(
    dashboard: httpx.Client, service: httpx.Client
) -> None:
    assert "{name: Service, ray_actor_options" in (INFRA / "ray/service.yaml").read_text()
    assert set(dashboard.get(APPLICATIONS).json()["applications"]["masm"]["deployments"]) == {"Service"}


def test_the_service_scores_for_those_with_its_key(service: httpx.Client) -> None:
    def post(**headers: str) -> httpx.Response:
        return service.post("/score", content=random_crop(1), headers={"Content-Type": "image/png", **headers})

    assert post().json()["images"][0]["outcome"] == "ok"
    assert post(Authorization="Bearer guess").status_code == 401


def test_ray_and_the_service_give_what_is_asked_of_them(service: httpx.Client, ports: dict[str, int]) -> None:
    """Ray's figures of GPUs, which are not here, are those that its nodes report where they are."""
    service.post("/score", content=random_crop(1), headers={"Content-Type": "image/png"})
    gpus = {f"ray_{name}": set[str]() for name in METRICS_GAUGES if "gpu" in name or "gram" in name}
    asked = {one for expression in expressions() for one in series(expression)}
    wanted = [one for one in asked if one.name.startswith(("ray_", "masm_"))]

    def found() -> dict[str, set[str]] | None:
        """All of it: Ray's nodes report every few seconds, the counts when a request has been answered."""
        ray = httpx.get(f"http://127.0.0.1:{ports['metrics-export-port']}/metrics", timeout=60).text
        shown = gpus | exposed(ray) | exposed(service.get("/metrics").text)
        return shown if {one.name for one in wanted} <= set(shown) else None

    shown = wait_for("all that is asked for", found, pause=1)
    for one in wanted:
        check(one, shown)
