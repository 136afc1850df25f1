"""Plots of the training and of the search."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from masm.plots.style import BLUE, GREY, INK, STYLE, VERMILION, new_figure, to_svg


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


@mpl.rc_context(STYLE)
def trial_scores(trials: pd.DataFrame) -> str:
    """Score of each search trial, the best so far as a step line, the best one marked."""
    figure, axes = new_figure(3.45, 3.0)
    known = trials.dropna(subset="score").sort_values("trial")
    best = known.iloc[int(known["score"].argmax())]
    axes.step(known["trial"], known["score"].cummax(), where="post", color=GREY, linewidth=1, label="best so far")
    axes.plot(known["trial"], known["score"], "o", color=BLUE, markersize=4.5)
    axes.plot(best["trial"], best["score"], "*", color=VERMILION, markersize=13, label=f"best: {best['score']:.3f}")
    axes.set(title="Score per trial", xlabel="trial", ylabel="search score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.legend(loc="outside lower center", ncols=2)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def parallel_coordinates(trials: pd.DataFrame) -> str:
    """One line per trial through its settings, each axis from its lowest to its highest value tried."""
    known = trials.dropna(subset="score").sort_values("score")  # the best one is drawn last, on top
    axes_of = [str(name) for name in known if name not in ("trial", "score")] + ["score"]
    scales = [_scale(known[name]) for name in axes_of]
    positions = np.column_stack([position for position, _, _ in scales])
    figure, axes = new_figure(max(3.6, 1.0 + 0.95 * len(axes_of)), 3.0)
    colours = mpl.colormaps["cividis"](0.9 * positions[:, -1])
    for position, colour in zip(positions[:-1], colours[:-1], strict=True):
        axes.plot(position, color=colour, linewidth=1, alpha=0.75)
    axes.plot(positions[-1], color=VERMILION, linewidth=2.6, marker="o", markersize=4)
    for index, (_, lowest, highest) in enumerate(scales):
        axes.axvline(index, color=GREY, linewidth=0.8)
        axes.text(index, -0.05, lowest, ha="center", va="top", fontsize=8)
        axes.text(index, 1.05, highest, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(axes_of)), axes_of)
    axes.set(yticks=[], ylim=(-0.16, 1.16), xlim=(-0.4, len(axes_of) - 0.6), title="Settings tried")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    return to_svg(figure)


def _scale(values: pd.Series) -> tuple[np.ndarray, str, str]:
    """Positions of the values from 0 to 1, and text at both ends; wide positive ranges are logarithmic."""
    if not pd.api.types.is_numeric_dtype(values):
        names = sorted(values.astype(str).unique())
        return (
            np.array([names.index(str(value)) for value in values]) / max(len(names) - 1, 1),
            names[0],
            names[-1],
        )
    low, high = float(values.min()), float(values.max())
    numbers = values.to_numpy(dtype=np.float64)
    if low > 0 and high / low > 50:
        position = np.log(numbers / low) / np.log(high / low)
    else:
        position = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
    return position, f"{low:.3g}", f"{high:.3g}"
