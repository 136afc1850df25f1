"""The map of the embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from masm.plots.style import BLUE, CLASSES, INK, LINES, ORANGE, PURPLE, SKY, STYLE, new_figure, to_svg

GROUP_COLOURS = (BLUE, ORANGE, PURPLE, SKY, INK)
GROUP_MARKERS = ("s", "D", "v", "P", "X", "*", "<")


@mpl.rc_context(STYLE)
def embedding_map(title: str, points: np.ndarray, groups: Sequence[str]) -> str:
    """Points (n, 2) of a map, coloured and shaped by their group (n,); the legend counts them.

    The points are one picture in the SVG, the size of which does not grow with their number.
    """
    counts = pd.Series(groups).value_counts(sort=False)
    columns = max(1, min(3, 52 // (max(len(name) for name in counts.index) + 9)))
    figure, axes = new_figure(3.45, 3.35 + 0.19 * -(-len(counts) // columns))
    figure.set_dpi(200)
    handles: list[Any] = []
    labels: list[str] = []
    for (name, count), (colour, marker) in zip(counts.items(), _group_styles(list(counts.index)), strict=True):
        x, y = points[[group == name for group in groups]].T
        style: Any = {"marker": marker, "color": colour, "linestyle": "", "markeredgewidth": 0}
        axes.plot(x, y, markersize=3, alpha=0.6, rasterized=True, **style)
        handles += axes.plot([], [], markersize=6, **style)
        labels.append(f"{name} ({count})")
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(LINES)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handletextpad=0.2, columnspacing=1.0)
    named = ", ".join(f"{name} ({count} frames)" for name, count in counts.items())
    return to_svg(figure, f"Map of the embeddings {title}: {named}.")


def _group_styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a marker for each group; no two of the first 35 share both."""
    others = [name for name in names if name not in CLASSES]
    own = {name: (GROUP_COLOURS[i % 5], GROUP_MARKERS[i % 7]) for i, name in enumerate(others)}
    return [(CLASSES | own)[name] for name in names]
