"""The fields of KubeRay's objects that infra/ uses, by KubeRay's API reference (ray.io/v1, 1.7), and no others.

Their schema is in no package: it is applied with the operator. Pods within are left to Kubernetes' schema.
"""

from __future__ import annotations

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator
from ray.serve.schema import ServeDeploySchema

FILES = ("cluster", "job", "service")


class Strict(BaseModel):
    """An object without unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Template(Strict):
    """A pod's template; its `spec` is checked as a Pod's."""

    metadata: dict[Literal["labels", "annotations"], dict[str, str]] = {}
    spec: dict[str, Any]


class Head(Strict):
    """`headGroupSpec`; a Service of another type would show the job port to others."""

    serviceType: Literal["ClusterIP"]  # noqa: N815 - Kubernetes' letters
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class Workers(Strict):
    """One of `workerGroupSpecs`."""

    groupName: str = Field(pattern="^[a-z0-9-]+$")  # noqa: N815
    replicas: NonNegativeInt
    minReplicas: NonNegativeInt  # noqa: N815
    maxReplicas: PositiveInt  # noqa: N815
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template

    @model_validator(mode="after")
    def _in_order(self) -> Workers:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError("replicas is not between minReplicas and maxReplicas")
        return self


class Auth(Strict):
    """`authOptions`; without them whoever reaches the job port runs what he likes."""

    mode: Literal["token"]


class Autoscaler(Strict):
    """`autoscalerOptions`."""

    version: Literal["v1", "v2"]
    idleTimeoutSeconds: NonNegativeInt  # noqa: N815
    securityContext: dict[str, Any]  # noqa: N815


class Cluster(Strict):
    """`RayClusterSpec`."""

    rayVersion: str = Field(pattern=r"^\d+\.\d+\.\d+$")  # noqa: N815
    authOptions: Auth  # noqa: N815
    enableInTreeAutoscaling: bool = False  # noqa: N815
    autoscalerOptions: Autoscaler | None = None  # noqa: N815
    headGroupSpec: Head  # noqa: N815
    workerGroupSpecs: list[Workers]  # noqa: N815


class Job(Strict):
    """`RayJobSpec`."""

    entrypoint: str
    submissionMode: Literal["HTTPMode", "K8sJobMode", "SidecarMode"]  # noqa: N815
    runtimeEnvYAML: str  # noqa: N815
    backoffLimit: NonNegativeInt  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: NonNegativeInt  # noqa: N815
    rayClusterSpec: Cluster  # noqa: N815

    @model_validator(mode="after")
    def _environment(self) -> Job:
        unknown = set(yaml.safe_load(self.runtimeEnvYAML)) - {"working_dir", "env_vars"}
        if unknown:
            raise ValueError(f"runtimeEnvYAML: {unknown}")
        return self


class Service(Strict):
    """`RayServiceSpec`; its `serveConfigV2` is checked by Ray Serve's own schema."""

    excludeHeadPodFromServeSvc: bool  # noqa: N815
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: Cluster  # noqa: N815

    @model_validator(mode="after")
    def _serve(self) -> Service:
        ServeDeploySchema.model_validate(yaml.safe_load(self.serveConfigV2))
        return self


class Metadata(Strict):
    """How an object is called."""

    name: str | None = None
    generateName: str | None = None  # noqa: N815


KINDS: dict[str, type[Strict]] = {"RayCluster": Cluster, "RayJob": Job, "RayService": Service}


def check(document: dict[str, Any]) -> None:
    """Hold a KubeRay object against the fields above.

    Raises:
        ValueError: one is unknown, missing or has a wrong value; pydantic's is one.
    """
    if set(document) != {"apiVersion", "kind", "metadata", "spec"}:
        raise ValueError(f"fields {sorted(document)}")
    Metadata.model_validate(document["metadata"])
    KINDS[document["kind"]].model_validate(document["spec"])
