"""What every benchmark prints: a table, or one JSON object with the machine and the figures."""

from __future__ import annotations

import json
import platform

import torch
from rich.console import Console
from rich.table import Table

Figures = dict[str, float]


def show(title: str, figures: Figures, as_json: bool) -> None:
    """Print `figures`; as JSON on one line, which is to be the program's last."""
    if as_json:
        print(json.dumps({"machine": machine(), "figures": figures}))
        return
    table = Table("figure", "value", title=title, caption=", ".join(f"{k}: {v}" for k, v in machine().items()))
    table.columns[1].justify = "right"
    for name, value in figures.items():
        table.add_row(name, f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    Console().print(table)


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        **gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{len(names)} x {names[0]}" if names else platform.processor()
