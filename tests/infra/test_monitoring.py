"""Prometheus takes its files, and asks the service and MLflow for what they give; for Ray see test_service.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import promql_parser
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from masm.serving.telemetry import Telemetry
from tests.infra.manifests import objects, pods, read
from tests.infra.metrics import Series, check, dashboard, exposed, expressions, series

ASKED = {asked for expression in expressions() for asked in series(expression)}
MLFLOW = """
from mlflow.server import app
client = app.test_client()
client.get("/get-artifact")
print(client.get("/metrics").text)
"""


class Strict(BaseModel):
    """A part of Prometheus' configuration: the fields of its documentation that infra/ uses, and no others."""

    model_config = ConfigDict(extra="forbid")


class Scrape(Strict):
    """One of `scrape_configs`."""

    job_name: str
    static_configs: list[dict[Literal["targets"], list[str]]] = []
    dns_sd_configs: list[dict[Literal["names", "type", "port", "refresh_interval"], Any]] = []
    kubernetes_sd_configs: list[dict[Literal["role", "namespaces"], Any]] = []
    relabel_configs: list[dict[Literal["source_labels", "regex", "action", "target_label"], Any]] = []
    basic_auth: dict[Literal["username", "password_file"], str] | None = None


class Configuration(Strict):
    """A file of scrapes."""

    global_: dict[Literal["scrape_interval", "evaluation_interval"], str] = Field(alias="global")
    rule_files: list[str]
    scrape_configs: list[Scrape]


class Rule(Strict):
    """An alert; its expression is parsed elsewhere."""

    alert: str = Field(pattern="^[A-Z][A-Za-z]+$")
    expr: str
    for_: str = Field(default="0s", alias="for", pattern="^[0-9]+[smh]$")
    annotations: dict[Literal["summary"], str]


def configuration(name: str) -> dict[str, Scrape]:
    """The scrapes of a file by their names."""
    return {scrape.job_name: scrape for scrape in Configuration.model_validate(read(name)).scrape_configs}


def test_expressions_that_prometheus_would_refuse_are_caught() -> None:
    for wrong in ("sum(", "rate(masm_requests_total)", "quantil(0.5, masm_requests_total)"):
        with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words
            promql_parser.parse(wrong)
    assert len(expressions()) > 25


def test_what_an_expression_names_is_found_however_deep() -> None:
    found = series('histogram_quantile(0.9, sum by (le) (rate(a_bucket{path="/"}[5m]))) / (b > 1) - c')
    assert found == {
        Series("a_bucket", frozenset({"le", "path"})),
        Series("b", frozenset()),
        Series("c", frozenset()),
    }


def test_a_name_or_label_that_is_not_given_is_caught() -> None:
    found = exposed('# TYPE a counter\na_total{path="/"} 1\n# TYPE b gauge\n')
    check(Series("a_total", frozenset({"path"})), found)
    check(Series("b", frozenset({"any"})), found)
    for wrong in (Series("a", frozenset()), Series("a_total", frozenset({"paths"}))):
        with pytest.raises(AssertionError):
            check(wrong, found)


def test_the_service_gives_what_is_asked_of_it() -> None:
    telemetry = Telemetry(60)
    telemetry.request("/score", 200, 0.1)
    telemetry.batch(1)
    telemetry.scored("ok", 1)
    telemetry.serves("replica", "1")
    telemetry.refused()
    found = exposed(telemetry.exposition().decode())
    asked = {one for one in ASKED if one.name.startswith("masm_")}
    assert len(asked) > 8
    for one in asked:
        check(one, found)


@pytest.mark.slow
def test_mlflow_gives_what_is_asked_of_it(tmp_path: Path) -> None:
    environment = os.environ | {"prometheus_multiproc_dir": str(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", MLFLOW], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = exposed(done.stdout[done.stdout.index("# HELP") :].strip() + "\n")
    asked = {one for one in ASKED if one.name.startswith("mlflow_")}
    assert asked
    for one in asked:
        check(one, found)


def test_all_that_is_asked_is_looked_at_somewhere() -> None:
    assert {one.name.split("_")[0] for one in ASKED} == {"masm", "mlflow", "ray", "up"}


@pytest.mark.parametrize("name", ["prometheus/machine.yaml", "prometheus/cluster.yaml"])
def test_a_misspelt_field_is_caught(name: str) -> None:
    assert set(configuration(name)) == {"ray", "serving", "mlflow"}
    with pytest.raises(ValidationError):
        Configuration.model_validate(read(name) | {"scrape_config": []})


def test_the_alerts_have_what_they_need() -> None:
    (group,) = read("prometheus/rules.yaml")["groups"]
    rules = [Rule.model_validate(rule) for rule in group["rules"]]
    assert len({rule.alert for rule in rules}) == len(rules)
    with pytest.raises(ValidationError):
        Rule.model_validate(group["rules"][0] | {"form": "2m"})


def test_the_machine_s_targets_are_services_of_compose() -> None:
    services = read("compose.yaml")["services"]
    scrapes = configuration("prometheus/machine.yaml")
    (ray,) = scrapes["ray"].dns_sd_configs
    for name in ray["names"]:
        assert f"--metrics-export-port={ray['port']}" in services[name]["command"]
    for job in ("serving", "mlflow"):
        ((target,),) = (entry["targets"] for entry in scrapes[job].static_configs)
        name, port = target.split(":")
        assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert "mlflow:5000" in services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_the_cluster_s_targets_are_ports_of_its_pods() -> None:
    scrapes = configuration("prometheus/cluster.yaml")
    (keep,) = [rule for rule in scrapes["ray"].relabel_configs if rule.get("action") == "keep"]
    assert keep["regex"] == "metrics"
    nodes = [d for d in objects() if d["apiVersion"] == "ray.io/v1"]
    ports = [port for node in nodes for pod in pods(node) for c in pod["containers"] for port in c["ports"]]
    assert {port["containerPort"] for port in ports if port["name"] == "metrics"} == {8080}
    assert {port["containerPort"] for port in ports if port["name"] == "serve"} == {8000}
    names = {f"{d['metadata'].get('name')}-serve-svc:8000" for d in nodes if d["kind"] == "RayService"}
    services = {
        f"{d['metadata']['name']}:{d['spec']['ports'][0]['port']}" for d in objects() if d["kind"] == "Service"
    }
    for job in ("serving", "mlflow"):
        ((target,),) = (entry["targets"] for entry in scrapes[job].static_configs)
        assert target in names | services


def test_the_dashboard_is_one_that_grafana_shows() -> None:
    """Panels with numbers of their own, side by side in Grafana's 24 columns, and a source that is there."""
    (source,) = read("grafana/datasource.yaml")["datasources"]
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        covered |= cells
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_legends_name_labels_of_their_series() -> None:
    """But for those that Prometheus or Ray's nodes add: instance, GpuIndex, node_type."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - {"instance", "GpuIndex", "node_type"}
            asked = series(target["expr"].replace("$__rate_interval", "5m"))
            assert all(named <= one.labels for one in asked), target["expr"]
