"""Kubernetes takes the manifests, and what they must not do they do not."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest

from tests.infra.manifests import KUBERNETES, Object, check, objects, pods, read

RAY_PORTS = {6379, 8265, 10001}
SECRETS = ("PASSWORD", "TOKEN", "SECRET", "KEY")
ALL = {f"{document['kind']}-{document['metadata'].get('name', '')}": document for document in objects()}


def find(kind: str, name: str) -> Object:
    return copy.deepcopy(ALL[f"{kind}-{name}"])


def policy(name: str) -> dict[str, Any]:
    return find("NetworkPolicy", name)["spec"]


@pytest.mark.parametrize("name", ALL)
def test_an_object_keeps_to_its_schema(name: str) -> None:
    check(ALL[name])


def test_a_misspelt_field_is_caught() -> None:
    for document in ALL.values():
        if "spec" in document:
            broken = copy.deepcopy(document)
            broken["spec"]["replica"] = 1
            with pytest.raises((kubernetes_validate.ValidationError, ValueError)):
                check(broken)


def test_a_wrong_field_of_a_pod_is_caught() -> None:
    for document in ALL.values():
        for number, _ in enumerate(pods(document)):
            broken = copy.deepcopy(document)
            list(pods(broken))[number]["containers"][0]["ports"] = [{"containerPort": "eighty"}]
            with pytest.raises(kubernetes_validate.ValidationError):
                check(broken)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["authOptions"].update(mode="disabled"),
        lambda spec: spec.pop("authOptions"),
        lambda spec: spec["headGroupSpec"].update(serviceType="LoadBalancer"),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas=5),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    ],
)
def test_a_cluster_that_is_open_or_wrong_is_caught(change: Any) -> None:
    cluster = find("RayCluster", "ray")
    change(cluster["spec"])
    with pytest.raises(ValueError, match="validation error"):
        check(cluster)


def test_a_service_that_ray_serve_would_refuse_is_caught() -> None:
    service = find("RayService", "masm")
    service["spec"]["serveConfigV2"] = service["spec"]["serveConfigV2"].replace("import_path", "path")
    with pytest.raises(ValueError, match="import_path"):
        check(service)


def test_no_pod_runs_as_root_or_gains_rights() -> None:
    """As the namespace's level `restricted` asks, which refuses a pod without these."""
    assert find("Namespace", "masm")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in [pod for document in ALL.values() for pod in pods(document)]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_secrets_are_references() -> None:
    entries = [entry for d in ALL.values() for pod in pods(d) for c in pod["containers"] for entry in c.get("env", [])]
    secret = [entry for entry in entries if any(word in entry["name"] for word in SECRETS)]
    assert len(secret) > 10
    assert all(set(entry["valueFrom"]) == {"secretKeyRef"} for entry in secret)
    assert not [d for d in ALL.values() if d["kind"] == "Secret"]


def test_nothing_is_shown_to_the_outside() -> None:
    services = [document["spec"] for document in ALL.values() if document["kind"] == "Service"]
    assert services
    assert all(service.get("type", "ClusterIP") == "ClusterIP" for service in services)
    containers = [c for d in ALL.values() for pod in pods(d) for c in pod["containers"]]
    assert not [port for container in containers for port in container["ports"] if "hostPort" in port]
    assert not [pod for d in ALL.values() for pod in pods(d) if pod.get("hostNetwork")]
    assert not [d for d in ALL.values() if d["kind"] == "Ingress"]


def test_everything_is_denied_first() -> None:
    assert policy("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_rays_ports_are_for_its_nodes_and_the_operator() -> None:
    """Of all that is let in to a pod of Ray, by any policy, without a list of ports or on one of Ray's."""
    ray = {"ray.io/is-ray-node": "yes"}
    operator = {"kubernetes.io/metadata.name": "kuberay-system"}
    admitted = []
    for name in ("ray", "ray-head-from-operator", "serving-from-clients"):
        for rule in policy(name)["ingress"]:
            ports = {port["port"] for port in rule.get("ports", [])}
            if not ports or ports & RAY_PORTS:
                admitted += [(peer, ports) for peer in rule["from"]]
    assert [peer.get("podSelector", {}).get("matchLabels") for peer, ports in admitted if not ports] == [ray]
    assert [(peer["namespaceSelector"]["matchLabels"], ports) for peer, ports in admitted if ports] == [
        (operator, {8265})
    ]
    others = {d["metadata"]["name"] for d in ALL.values() if d["kind"] == "NetworkPolicy"}
    assert others == {
        *("deny-all", "names", "ray", "ray-head-from-operator", "serving-from-clients"),
        *("mlflow", "postgres", "prometheus", "grafana"),
    }, "look at what the new policy lets in to Ray's pods"


def test_no_pod_reaches_the_address_of_the_cloud_s_keys() -> None:
    blocks = [
        peer["ipBlock"]
        for document in ALL.values()
        if document["kind"] == "NetworkPolicy"
        for rule in document["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_volumes_secrets_and_files_are_there() -> None:
    """Configmaps come from kustomization.yaml, or, as masm-params, from the operator."""
    kustomization = read("kustomization.yaml")
    made = {entry["name"] for entry in kustomization["configMapGenerator"]} | {"masm-params"}
    for document in ALL.values():
        for pod in pods(document):
            volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
            claims = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
            mounts = {mount["name"] for c in pod["containers"] for mount in c.get("volumeMounts", [])}
            assert mounts == {*volumes, *claims}
            assert {v["configMap"]["name"] for v in volumes.values() if "configMap" in v} <= made


def test_the_versions_are_those_that_the_schemas_know() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        kubernetes_validate.validate({**ALL["Deployment-mlflow"], "apiVersion": "apps/v1beta1"}, KUBERNETES[0])
