"""The report of a model: one HTML file that opens offline."""

from masm.report.inputs import DatasetCard, ReportInputs
from masm.report.mistakes import Mistake, hardest_mistakes
from masm.report.render import write_report
from masm.report.verdict import insert_verdict

__all__ = ["DatasetCard", "Mistake", "ReportInputs", "hardest_mistakes", "insert_verdict", "write_report"]
