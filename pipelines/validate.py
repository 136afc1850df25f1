"""Stage `validate`: Great Expectations on the face tables; a failed expectation stops the pipeline."""

from __future__ import annotations

import json

from rich.console import Console

from masm.data.checks import run_checks
from masm.errors import CheckFailed
from masm.settings import Settings
from pipelines import run_stage


def main(settings: Settings) -> None:
    """Write reports/data_docs and reports/checks.json.

    Raises:
        CheckFailed: an expectation was not met; the data docs are there all the same.
    """
    reports = settings.root / "reports"
    console = Console(stderr=True)
    with console.status("validate") as status:
        failures = run_checks(settings, reports / "data_docs", lambda name: status.update(f"validate {name}"))
    if failures:
        listed = "\n".join(f"  {failure}" for failure in failures)
        docs = reports / "data_docs" / "index.html"
        raise CheckFailed(f"{len(failures)} expectations were not met (see {docs}):\n{listed}")
    (reports / "checks.json").write_text(json.dumps({"datasets": list(settings.datasets), "failures": 0}) + "\n")
    console.print(f"validate: {len(settings.datasets)} face tables are sound, nothing is shared between splits")


if __name__ == "__main__":
    run_stage(main)
