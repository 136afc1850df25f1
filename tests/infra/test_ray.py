"""`ray up` takes the cluster of machines, and all that names Ray's version names the lock's."""

from __future__ import annotations

import copy
import re
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws.config import _configure_security_group
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra.manifests import INFRA, read

LOCK = (INFRA.parent / "requirements.lock").read_text()


def machines(**changes: Any) -> dict[str, Any]:
    """infra/ray/machines.yaml as `ray up` completes it before it looks at it."""
    return prepare_config(read("ray/machines.yaml") | changes)


def test_ray_up_takes_the_machines() -> None:
    validate_config(machines())


@pytest.mark.parametrize("changes", [{"max_worker": 3}, {"auth": {"user": "ubuntu"}}, {"provider": {}}])
def test_an_unknown_field_is_caught(changes: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, KeyError)):
        validate_config(machines(**changes))


def test_the_machines_are_closed_to_the_outside() -> None:
    """By the operator's own security group: one that Ray makes opens SSH to all, and it makes one for any node type

    that names none. The dashboard with its job port listens on the head's loopback address.
    """
    config = read("ray/machines.yaml")
    assert "security_group" not in config["provider"]
    assert _configure_security_group(copy.deepcopy(config)) == config  # Ray asks AWS for nothing
    (head,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


def test_the_ray_of_the_manifests_is_the_locks() -> None:
    locked = re.search(r"^ray==(\S+)", LOCK, re.MULTILINE)
    assert locked
    text = "".join((INFRA / f"ray/{name}.yaml").read_text() for name in ("cluster", "job", "service"))
    assert set(re.findall(r'rayVersion: "(\S+)"', text)) == {locked[1]}


def test_jobs_of_both_clusters_find_the_same() -> None:
    cluster = read("ray/cluster.yaml")["spec"]
    own = read("ray/job.yaml")["spec"]["rayClusterSpec"]
    assert of_containers(cluster) == of_containers(own)


def of_containers(spec: dict[str, Any]) -> dict[str, Any]:
    """The environment and the rights of a cluster's containers, the same for all of them; and its head's size."""
    head, *workers = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    keys = ("env", "envFrom", "securityContext", "image")
    found = [
        {"pod": pod["securityContext"], **{key: pod["containers"][0][key] for key in keys}} for pod in (head, *workers)
    ]
    assert all(each == found[0] for each in found)
    return {**found[0], "head": head["containers"][0]["resources"]}


def test_the_container_is_built_as_the_makefile_builds() -> None:
    """The same uv, and a Python that pyproject.toml admits."""
    container, makefile = (INFRA / "Containerfile").read_text(), (INFRA.parent / "Makefile").read_text()
    version = re.search(r"^UV_VERSION := (\S+)", makefile, re.MULTILINE)
    assert version
    assert f"ARG UV_VERSION={version[1]}\n" in container
    assert "--require-hashes requirements.lock" in container
    assert container.index("USER 1000:1000") < container.index("CMD")


def test_what_the_container_copies_gets_into_its_context() -> None:
    ignored = (INFRA / "Containerfile.dockerignore").read_text().splitlines()
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (.+) \S+$", (INFRA / "Containerfile").read_text(), re.MULTILINE)
    named = {name for line in copied for name in line.split()}
    assert named == admitted
    assert all((INFRA.parent / name).exists() for name in named)


def test_a_kustomization_names_files_that_are_there() -> None:
    kustomization = yaml.safe_load((INFRA / "kustomization.yaml").read_text())
    generated = [file for entry in kustomization["configMapGenerator"] for file in entry["files"]]
    for file in [*kustomization["resources"], *(name.rpartition("=")[2] for name in generated)]:
        assert (INFRA / file).is_file(), file
