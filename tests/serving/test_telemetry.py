"""What the service counts, against a clock that the test turns."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from masm.serving.telemetry import Telemetry


def samples(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    """Samples of /metrics of one name by their labels."""
    families = text_string_to_metric_families(telemetry.exposition().decode())
    found = (sample for family in families for sample in family.samples if sample.name == name)
    return {tuple(sample.labels.values()): sample.value for sample in found}


def test_replicas_that_do_not_report_are_forgotten() -> None:
    now = 0.0
    telemetry = Telemetry(60, lambda: now)
    telemetry.serves("a", "1")
    telemetry.serves("b", "1")
    for now in (30.0, 59.0, 90.0):  # noqa: B007
        telemetry.serves("b", "1")
    assert telemetry.versions() == {"b": "1"}
    assert samples(telemetry, "masm_model_info") == {("b", "1"): 1}
    telemetry.serves("a", "1")
    assert telemetry.versions() == {"a": "1", "b": "1"}
    assert samples(telemetry, "masm_swaps_total") == {}


def test_a_swap_is_counted_once() -> None:
    telemetry = Telemetry(60)
    for version in ("1", "1", "2", "2", "2", "1"):
        telemetry.serves("a", version)
    assert samples(telemetry, "masm_swaps_total") == {("taken",): 2}
    assert samples(telemetry, "masm_model_info") == {("a", "1"): 1}
