"""Compose takes compose.yaml, and what it must not do it does not."""

from __future__ import annotations

import copy
import json
import re
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from tests.infra.manifests import INFRA, read

FILES = ("compose.yaml", "compose.gpu.yaml")
SCHEMA = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())
COMPOSE = read("compose.yaml")


def check(document: dict[str, Any]) -> None:
    """Hold a file against the Compose specification's schema."""
    jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_to_the_schema(name: str) -> None:
    check(read(name))


@pytest.mark.parametrize("change", [{"port": ["1:1"]}, {"restart": 3}, {"depends_on": {"mlflow": {"when": "up"}}}])
def test_a_wrong_field_is_caught(change: dict[str, Any]) -> None:
    broken = copy.deepcopy(COMPOSE)
    broken["services"]["serving"] |= change
    with pytest.raises(jsonschema.ValidationError):
        check(broken)


def test_every_port_is_published_on_the_loopback_address() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(published) == 5
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in published)


def test_every_secret_is_asked_for_and_has_no_default() -> None:
    """Compose does not start with an empty one; .env.example names all that is read, and gives no secret a value."""
    text = "".join((INFRA / name).read_text() for name in FILES)
    used = dict(re.findall(r"\$\{(\w+)(:[^}]*)?\}", text))
    example = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / ".env.example").read_text(), re.MULTILINE))
    assert set(used) == set(example)
    for name, otherwise in used.items():
        if otherwise.startswith(":?"):
            assert example[name] == ""
        else:
            assert otherwise == f":-{example[name]}"
    secret = {name for name in used if re.search("PASSWORD|TOKEN|KEY", name)}
    assert secret == {name for name, otherwise in used.items() if otherwise.startswith(":?")}


def test_the_secrets_file_is_ignored_by_git() -> None:
    assert "/infra/.env" in (INFRA.parent / ".gitignore").read_text().splitlines()


def test_services_volumes_and_files_are_there() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for mount in service.get("volumes", []):
            source = mount["source"] if isinstance(mount, dict) else mount.split(":")[0]
            if source.startswith("./"):
                assert (INFRA / source).is_file()
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]


def test_our_containers_have_no_rights_of_root() -> None:
    for service in COMPOSE["services"].values():
        if service["image"].startswith("masm"):
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert "user" not in service, "the image's own is not root"
