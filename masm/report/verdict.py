"""The report's section "Gate", which is filled after the report was written."""

from __future__ import annotations

import re
from pathlib import Path

from masm.errors import UserError
from masm.promotion import Verdict
from masm.report.render import load_template

TEMPLATE = Path(__file__).with_name("gate.html")
GATE = re.compile(r"(<!-- gate -->).*?(<!-- /gate -->)", re.DOTALL)


def insert_verdict(html: str, verdict: Verdict) -> str:
    """A report with this verdict in place of "not judged yet", or of a former one.

    Raises:
        UserError: the report has no section for it.
    """
    section = load_template(TEMPLATE).render(verdict=verdict)
    filled, count = GATE.subn(lambda match: f"{match[1]}\n{section}\n  {match[2]}", html)
    if count != 1:
        raise UserError("The report has no section for the gate's verdict: run the stage evaluate again.")
    return filled
