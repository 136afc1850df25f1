"""What the plots of the report share: colours, the style, and SVG text that is the same for the same data."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.sax.saxutils import quoteattr

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision (https://jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7A7F87"
SKY, PURPLE = "#56B4E9", "#CC79A7"
MODEL_COLOURS = (BLUE, ORANGE, GREEN, VERMILION)
MODEL_MARKERS = ("o", "s", "D", "^")
INK, LINES = "#2B2F36", "#E3E6EB"
CLASSES = {"real": (GREEN, "o"), "fake": (VERMILION, "^")}

STYLE: Any = {
    "svg.hashsalt": "masm",  # identifiers by content, not by chance
    "svg.fonttype": "none",  # text stays text: small files that can be searched and read aloud
    "text.parse_math": False,  # a dollar sign in a dataset's name is a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINES,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.8,
}


def to_svg(figure: Figure, description: str = "") -> str:
    """The figure as an element to put into HTML: no header, no date, only the identifiers it refers to.

    `description` is read aloud in place of a picture whose points say nothing one by one.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    referred = set(re.findall(r"#([\w-]+)", svg))
    if description:
        svg = f'<svg role="img" aria-label={quoteattr(description)}{svg.removeprefix("<svg")}'
    return re.sub(r' id="([^"]*)"', lambda match: match.group() if match.group(1) in referred else "", svg)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure, figure.subplots()
