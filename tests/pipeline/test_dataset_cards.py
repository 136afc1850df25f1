from __future__ import annotations

from pathlib import Path

import yaml

from masm.data.findings import Finding, write_findings
from pipelines.evaluate import _dataset_cards
from tests.data.tables import make_settings, write_tables


def test_the_report_names_the_datasets_whose_classes_have_different_sources(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    write_tables(settings)
    stages = {f"ingest@{name}": {"outs": [{"path": "", "md5": f"md5 of {name}"}]} for name in settings.datasets}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "reports").mkdir()
    findings = [
        Finding("confounding", "warning", "judge", "swap: its size alone tells"),
        Finding("confounding", "warning", "judge", "swap: its compression alone tells"),
        Finding("person", "warning", "again", "somebody is in two places"),
    ]
    write_findings(tmp_path / "reports" / "checks.json", list(settings.datasets), findings)
    cards = {card.name: card for card in _dataset_cards(settings)}
    assert {name for name, card in cards.items() if card.note} == {"judge"}
    assert cards["judge"].note == "reals and fakes come from different sources: swap: its size alone tells; 1 more"
    assert cards["judge"].digest == "md5 of judge"
