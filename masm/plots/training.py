"""Plots of the training."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.ticker import MaxNLocator

from masm.plots.style import INK, STYLE, new_figure, to_svg


@mpl.rc_context(STYLE)
def line(title: str, x: pd.Series, y: pd.Series, colour: str, best: int | None = None) -> str:
    """One curve; `best` marks a position in it."""
    figure, axes = new_figure(3.45, 2.5)
    known = y.notna()
    axes.plot(x[known], y[known], color=colour, marker="o", markersize=3.5)
    if best is not None:
        axes.plot(x.iloc[best], y.iloc[best], "o", color=INK, markersize=8, markerfacecolor="none", label="kept")
        axes.legend()
    axes.set(title=title, xlabel=str(x.name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return to_svg(figure)
