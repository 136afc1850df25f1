"""What Prometheus is asked: the expressions of the dashboard and of the alerts, and the series that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

from tests.infra.manifests import INFRA, read


@dataclass(frozen=True)
class Series:
    """A name that an expression asks for, with the labels that the expression selects or sums by."""

    name: str
    labels: frozenset[str]


def dashboard() -> dict[str, list[dict[str, object]]]:
    """infra/grafana/dashboard.json."""
    return json.loads((INFRA / "grafana/dashboard.json").read_text())


def expressions() -> list[str]:
    """Every expression, with a time in place of Grafana's variable."""
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    rules = [rule["expr"] for group in read("prometheus/rules.yaml")["groups"] for rule in group["rules"]]
    return [expression.replace("$__rate_interval", "5m") for expression in [*asked, *rules]]


def series(expression: str) -> set[Series]:
    """What an expression names.

    Raises:
        ValueError: Prometheus would not take it.
    """
    return set(_series(promql_parser.parse(expression), frozenset()))


def _series(node: promql_parser.Expr, labels: frozenset[str]) -> Iterator[Series]:
    if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
        labels |= set(node.modifier.labels)
    if isinstance(node, promql_parser.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, promql_parser.VectorSelector):
        yield Series(node.name, labels | {matcher.name for matcher in node.matchers.matchers})
    for name in ("lhs", "rhs", "expr"):
        if (child := getattr(node, name, None)) is not None:
            yield from _series(child, labels)
    for child in getattr(node, "args", []):
        yield from _series(child, labels)


def exposed(text: str) -> dict[str, set[str]]:
    """The names of an exposition with the labels of each; those without a sample yet have none."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            found.setdefault(family.name + suffix, set())
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def check(asked: Series, found: dict[str, set[str]]) -> None:
    """Hold a series against an exposition.

    Raises:
        AssertionError: there is no such name, or it has samples, and none with such a label.
    """
    assert asked.name in found, f"nothing is called {asked.name}"
    missing = asked.labels - found[asked.name]
    assert not (found[asked.name] and missing), f"{asked.name} has no {missing}, it has {found[asked.name]}"
