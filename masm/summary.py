"""What a pipeline came to, in the terminal: the figures, the registered version, and where to look next."""

from __future__ import annotations

import json
from os.path import relpath
from pathlib import Path

from rich.console import Console
from rich.table import Table

from masm.scorecard import ADAPTED, number
from masm.settings import Settings

MODELS = {ADAPTED: "adapted", "probe": "frozen-backbone probe"}


def print_summary(settings: Settings, console: Console) -> None:
    """Print what the stages wrote under reports/ of a workspace."""
    reports = settings.root / "reports"
    metrics = json.loads((reports / "metrics.json").read_text())
    promotion = json.loads((reports / "promotion.json").read_text())
    console.print(results_table(metrics, settings.with_role("test")))
    gain, low, high = (metrics[f"gain.video_auc{end}"] for end in ("", "_low", "_high"))
    console.print(
        f"Adapted minus probe, mean video AUC, paired: {gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}",
        highlight=False,
    )
    version = f"{promotion['model']} version {promotion['version']}"
    console.print(f"\n{version} is [bold]{', '.join(promotion['aliases'])}[/]: {promotion['reason']}")
    console.print("\nWhere to look next", style="bold")
    here = Path.cwd()
    params = relpath(settings.root / "params.yaml", here)
    for what, where in (
        ("the report", relpath(reports / "decision.html", here)),
        ("the data checks", relpath(reports / "data_docs" / "index.html", here)),
        ("runs and models", "make ui"),
        ("all versions", f"masm registry list --params {params}"),
        ("serve it", f"masm serve --params {params}"),
    ):
        console.print(f"  {what:16} {where}", highlight=False, soft_wrap=True)


def results_table(metrics: dict[str, float], datasets: list[str]) -> Table:
    """Frame and video AUC of both models on each test dataset and in the mean."""
    table = Table(title="Cross-dataset results")
    table.add_column("dataset")
    table.add_column("videos", justify="right")
    table.add_column("model")
    for column in ("frame AUC", "video AUC", "95 % interval"):
        table.add_column(column, justify="right")
    for dataset in (*datasets, "macro"):
        for model, title in MODELS.items():
            key = f"{model}.{dataset}"
            videos = metrics.get(f"{key}.videos")
            first = model == ADAPTED
            undefined = float("nan")
            low, high = (metrics.get(f"{key}.video_auc_{end}", undefined) for end in ("low", "high"))
            table.add_row(
                ("mean" if dataset == "macro" else dataset) if first else "",
                f"{videos:g}" if videos is not None and first else "",
                title,
                number(metrics.get(f"{key}.frame_auc", undefined)),
                number(metrics.get(f"{key}.video_auc", undefined)),
                f"{number(low)} to {number(high)}",
                end_section=not first,
            )
    return table
