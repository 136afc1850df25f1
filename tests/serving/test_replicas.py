"""Several replicas: they share the rate limit and the counts, and all of them follow."""

from __future__ import annotations

import httpx
import pytest

from masm.errors import UserError
from masm.serving.app import running, warn_of_strangers
from masm.settings import Serving
from tests.serving.service import configure, make_registry, set_champion, started
from tests.serving.workspace import own_address, random_crop, tiny_detector
from tests.waiting import wait_for

KEY = "open sesame"
pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_service_for_everybody_warns() -> None:
    def serving(host: str) -> Serving:
        return Serving(host=host)

    assert "set MASM_API_KEY" in str(warn_of_strangers(serving("0.0.0.0"), None))
    assert warn_of_strangers(serving("0.0.0.0"), KEY) is None
    assert [warn_of_strangers(serving(host), None) for host in ("127.0.0.1", "localhost", "::1")] == [None] * 3


def test_replicas_share_limits_and_follow_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    with own_address():
        settings = make_registry(
            tmp_path_factory.mktemp("replicas"), tiny_detector(1), tiny_detector(2), replicas=2, requests_per_minute=5
        )
        with started(settings, {"MASM_API_KEY": KEY}) as address:
            wait_for("both replicas", lambda: _versions(address) == ["1", "1"])
            _check_rate_limit(address)
            set_champion(settings, "2")
            wait_for("both replicas' swap", lambda: _versions(address) == ["2", "2"])
        _check_refusals(settings)


def _versions(address: str) -> list[str]:
    return list(httpx.get(f"{address}/healthz", timeout=60).json()["replicas"].values())


def _check_rate_limit(address: str) -> None:
    def status(client: httpx.Client, images: int = 1) -> int:
        files = [("file", ("a.png", random_crop(1))) for _ in range(images)]
        return client.post("/score", files=files).status_code

    with _client(address, "127.0.0.1") as client:
        assert [status(client) for _ in range(5)] == [200] * 5
        answer = client.post("/score", content=random_crop(1), headers={"Content-Type": "image/png"})
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert "ask again in" in answer.json()["detail"]
    with _client(address, "127.0.0.2") as client:
        assert [status(client, 4), status(client), status(client)] == [200, 200, 429]
    with _client(address, "127.0.0.3", "guess") as client:
        assert [status(client) for _ in range(6)] == [401] * 5 + [429]


def _client(address: str, own: str, key: str = KEY) -> httpx.Client:
    """A client with another address of this machine."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(
        base_url=address, headers=headers, transport=httpx.HTTPTransport(local_address=own), timeout=60
    )


def _check_refusals(settings: object) -> None:
    """What the operator can get wrong ends before Ray is started."""
    with pytest.raises(UserError, match="there is no models:/"), running(settings, "models:/none/7", None):
        pass
    other = configure(settings, host="192.0.2.1")
    uri = f"models:/{other.mlflow.model}@champion"
    with pytest.raises(UserError, match="the service cannot listen"), running(other, uri, None):
        pass
