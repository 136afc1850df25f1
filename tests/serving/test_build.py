"""What `serve deploy` and KubeRay pass to the service."""

from __future__ import annotations

import pytest

from masm.errors import UserError
from masm.serving.app import MLFLOW_PATIENCE, build
from tests.infra.manifests import read


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("modell", r"no argument 'modell'; did you mean model\?"),
        ("zzz", r"'zzz'; did you mean params or model"),
    ],
)
def test_an_unknown_argument_is_named(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build({name: "models:/masm-detector@champion"})


def test_kuberays_pods_have_the_patience_of_a_replica() -> None:
    """`deployments` of a manifest take the place of a replica's own options, as for GPUs."""
    spec = read("ray/service.yaml")["spec"]["rayClusterConfig"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        entries = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert entries.items() >= MLFLOW_PATIENCE.items()
