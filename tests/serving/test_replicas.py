"""Several replicas: they share the rate limit and the counts, and all of them follow."""

from __future__ import annotations

import httpx
import pytest

from masm.errors import UserError
from masm.serving.app import running
from tests.serving.service import configure, eventually, make_registry, set_champion, started
from tests.serving.workspace import own_address, random_crop, tiny_detector

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_replicas_share_limits_and_follow_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    with own_address():
        settings = make_registry(
            tmp_path_factory.mktemp("replicas"), tiny_detector(1), tiny_detector(2), replicas=2, requests_per_minute=5
        )
        with started(settings) as address:
            _check_rate_limit(address)
            eventually(lambda: _versions(address) == ["1", "1"])
            set_champion(settings, "2")
            eventually(lambda: _versions(address) == ["2", "2"])
        _check_refusals(settings)


def _versions(address: str) -> list[str]:
    return list(httpx.get(f"{address}/healthz").json()["replicas"].values())


def _check_rate_limit(address: str) -> None:
    def status(client: httpx.Client) -> int:
        return client.post("/score", content=random_crop(1), headers={"Content-Type": "image/png"}).status_code

    with httpx.Client(base_url=address) as client:
        assert [status(client) for _ in range(5)] == [200] * 5
        answer = client.post("/score", content=random_crop(1), headers={"Content-Type": "image/png"})
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 12
        assert "ask again in" in answer.json()["detail"]
    other = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=address, transport=other) as client:
        assert status(client) == 200


def _check_refusals(settings: object) -> None:
    """What the operator can get wrong ends before Ray is started."""
    with pytest.raises(UserError, match="there is no models:/"), running(settings, "models:/none/7", None):
        pass
    other = configure(settings, host="192.0.2.1")
    uri = f"models:/{other.mlflow.model}@champion"
    with pytest.raises(UserError, match="the service cannot listen"), running(other, uri, None):
        pass
