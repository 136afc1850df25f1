"""What infra/ holds, read as an operator's tools read it, and the checks of a Kubernetes object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from tests.infra import kuberay

INFRA = Path(__file__).resolve().parents[2] / "infra"
KUBERNETES = ("1.31", "1.37")
"""The versions between which the manifests hold."""

Object = dict[str, Any]


def read(path: str) -> Any:
    """The one document of a YAML file of infra/."""
    return yaml.safe_load((INFRA / path).read_text())


def objects() -> list[Object]:
    """Every Kubernetes object of infra/, KubeRay's too."""
    files = [*sorted((INFRA / "kubernetes").glob("*.yaml")), *(INFRA / f"ray/{name}.yaml" for name in kuberay.FILES)]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def check(document: Object) -> None:
    """Hold an object against the schemas of Kubernetes, or of KubeRay with its pods against Kubernetes' Pod.

    Raises:
        kubernetes_validate.ValidationError: a field is unknown, missing or of another type.
        pydantic.ValidationError: the same, outside of the pods of a KubeRay object.
    """
    if document["apiVersion"] != "ray.io/v1":
        _check_core(document)
        return
    kuberay.check(document)
    for pod in pods(document):
        _check_core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod})


def _check_core(document: Object) -> None:
    for version in KUBERNETES:
        kubernetes_validate.validate(document, version, strict=True)


def pods(node: Any) -> Iterator[Object]:
    """The specification of each pod of an object, however deep."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for child in node.values():
            yield from pods(child)
    elif isinstance(node, list):
        for child in node:
            yield from pods(child)
