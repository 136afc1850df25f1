"""What the checks found, and reports/checks.json, which keeps it for the stages to come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from masm.settings import Severity


@dataclass(frozen=True)
class Finding:
    """Something that should not be.

    Attributes:
        check: as in `checks.severity` of params.yaml.
        severity: whether it fails the validation.
        dataset: where; "all datasets" for what takes more than one.
        text: what was found, in a sentence.
    """

    check: str
    severity: Severity
    dataset: str
    text: str


def write_findings(path: Path, datasets: Sequence[str], findings: Sequence[Finding]) -> None:
    """Write what was found in the datasets that were looked at, with counts."""
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in ("error", "warning")}
    content = {
        "datasets": list(datasets),
        "errors": counts["error"],
        "warnings": counts["warning"],
        "findings": [asdict(finding) for finding in findings],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def confounded_datasets(path: Path) -> dict[str, str]:
    """Datasets whose reals and fakes come from different sources -> the first sign of it, and how many more there are.

    Args:
        path: checks.json.
    """
    signs: dict[str, list[str]] = {}
    for finding in json.loads(path.read_text())["findings"]:
        if finding["check"] == "confounding":
            signs.setdefault(finding["dataset"], []).append(finding["text"])
    return {dataset: texts[0] + (f"; {len(texts) - 1} more" if texts[1:] else "") for dataset, texts in signs.items()}
