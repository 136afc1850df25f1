"""Plots of the scores and of the figures made of them: curves, intervals, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, PercentFormatter

from masm.plots.style import GREEN, GREY, INK, MODEL_COLOURS, MODEL_MARKERS, STYLE, VERMILION, new_figure, to_svg
from masm.scorecard import Estimate


@mpl.rc_context(STYLE)
def intervals(title: str, rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> str:
    """Dots with 95 % whiskers: one row per name, one dot per model; an undefined one is said in words."""
    models = list(rows[0][1])
    figure, axes = new_figure(5.2, 1.0 + 0.5 * len(rows))
    offsets = np.linspace(-0.14, 0.14, len(models)) if len(models) > 1 else np.zeros(1)
    for index, (_, estimates) in enumerate(rows):
        for offset, colour, marker, model in zip(offsets, MODEL_COLOURS, MODEL_MARKERS, models, strict=False):
            estimate, y = estimates[model], index + offset
            if np.isfinite(estimate.value):
                axes.plot([estimate.low, estimate.high], [y, y], color=colour, solid_capstyle="round")
                axes.plot(estimate.value, y, marker=marker, color=colour, markersize=6)
            else:
                axes.text(0.51, y, "undefined (one class)", color=colour, va="center", fontsize=8)
    for colour, marker, model in zip(MODEL_COLOURS, MODEL_MARKERS, models, strict=False):
        axes.plot([], [], color=colour, marker=marker, label=model)
    axes.axvline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(title=title, xlabel="video AUC (dotted: chance)", ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlim(min([0.48, *_lows(rows)]), 1.01)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower right", ncols=len(models))
    return to_svg(figure)


def _lows(rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> list[float]:
    lows = [estimate.low for _, estimates in rows for estimate in estimates.values()]
    return [low - 0.02 for low in lows if np.isfinite(low)]


@mpl.rc_context(STYLE)
def histogram(dataset: str, videos: pd.DataFrame, threshold: float) -> str:
    """Video scores of reals and fakes of one dataset, each as a share of its class, and the threshold."""
    figure, axes = new_figure(3.45, 3.0)
    bins = np.linspace(0, 1, 21).tolist()
    for label, name, colour in ((0, "real", GREEN), (1, "fake", VERMILION)):
        values = videos.loc[videos["label"] == label, "score"].to_numpy()
        if len(values):
            style: Any = {"facecolor": f"{colour}55", "edgecolor": colour, "linewidth": 1.1}
            share = np.full(len(values), 1 / len(values))
            axes.hist(values, bins, weights=share, histtype="stepfilled", label=f"{name} ({len(values)})", **style)
    axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold {threshold:.2f}")
    axes.set(title=dataset, xlabel="score (probability of fake)", ylabel="share of class", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)
    return to_svg(figure)
