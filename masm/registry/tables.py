"""The registry in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from masm.promotion import Comparison
from masm.registry.promotions import Details
from masm.registry.versions import Version
from masm.scorecard import Estimate, number


def versions_table(name: str, versions: Sequence[Version]) -> Table:
    """A row for each version."""
    table = Table(
        "version", "aliases", "video AUC", "95 % interval", "verdict", "created", "promoted", "by", title=name
    )
    for version in versions:
        auc = version.video_auc
        table.add_row(
            str(version.version),
            ", ".join(version.aliases),
            "" if auc is None else f"{auc.value:.3f}",
            "" if auc is None else auc.interval(),
            version.verdict or "",
            f"{version.created:%Y-%m-%d %H:%M}",
            _minute(version.promoted),
            version.promoted_by or "",
        )
    return table


def details_table(found: Details) -> Table:
    """Aliases, description and tags of a version, then the trail of its model, the newest entry first."""
    table = Table("", "", title=f"{found.model} version {found.version.version}", show_header=False)
    table.add_row("aliases", ", ".join(found.version.aliases))
    for key, value in sorted(found.tags.items()):
        table.add_row(key, value.replace("; ", "\n") if key == "conditions" else value)
    table.add_section()
    for entry in reversed(found.trail):
        over = "" if entry.over is None else f" over version {entry.over}"
        now = "no champion" if entry.version is None else f"version {entry.version}"
        table.add_row(_minute(entry.time), f"{now}{over}, {entry.by}: {entry.reason}")
    return table


def comparison_table(titles: Sequence[str], rows: Sequence[Comparison]) -> Table:
    """Video AUC of two versions and their paired difference on each dataset and in the mean."""
    table = Table("dataset", *titles, "difference", "95 % interval", title="Video AUC, paired")
    for row in rows:
        name = "mean" if row.dataset == "macro" else row.dataset
        figures = [_with_interval(row.a), _with_interval(row.b), f"{row.difference.value:+.3f}"]
        table.add_row(name if row.decides else f"{name} (decides nothing)", *figures, row.difference.interval())
    return table


def _with_interval(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {estimate.interval()}"


def _minute(time: str | None) -> str:
    return "" if time is None else time[:16].replace("T", " ")
