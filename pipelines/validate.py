"""Stage `validate`: the checks of the face tables; a finding that is an error stops the pipeline."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console

from masm.data.checks import run_checks
from masm.data.findings import Finding, write_findings
from masm.errors import CheckFailed
from masm.settings import Settings
from pipelines import run_stage

LISTED = 10
"""Findings of a check that are printed; all are in reports/checks.json."""


def main(settings: Settings) -> None:
    """Write reports/data_docs and reports/checks.json, and show what was found.

    Raises:
        CheckFailed: something was found by a check whose severity is error; both files are there all the same.
    """
    reports = settings.root / "reports"
    console = Console(stderr=True)
    with console.status("validate") as status:
        findings = run_checks(settings, reports / "data_docs", lambda name: status.update(f"validate {name}"))
    write_findings(reports / "checks.json", list(settings.datasets), findings)
    warnings, errors = (
        [finding for finding in findings if finding.severity == severity] for severity in ("warning", "error")
    )
    docs = reports / "data_docs" / "index.html"
    if warnings:
        console.print(f"{len(warnings)} warnings (see {docs}):\n{_listed(warnings)}", markup=False, highlight=False)
    if errors:
        raise CheckFailed(f"{len(errors)} expectations were not met (see {docs}):\n{_listed(errors)}")
    shared = "no error was found" if warnings else "nothing is shared between places"
    console.print(f"validate: {len(settings.datasets)} face tables are sound, {shared}")


def _listed(findings: list[Finding]) -> str:
    """A line for each, of each check the first few."""
    lines = []
    for check, group in groupby(sorted(findings, key=lambda finding: finding.check), lambda finding: finding.check):
        texts = [f"  {finding.dataset}: {finding.text}" for finding in group]
        more = [f"  and {len(texts) - LISTED} more of {check} in reports/checks.json"] if len(texts) > LISTED else []
        lines += [*texts[:LISTED], *more]
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
