"""Curves of the models: ROC, DET, reliability and robustness."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import matplotlib as mpl
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from masm.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MODEL_COLOURS,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    new_figure,
    to_svg,
)

DET_TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8)
DET_LIMITS = (0.0007, 0.93)
LADDER_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, INK, BLUE, ORANGE)
LADDER_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<")


@mpl.rc_context(STYLE)
def roc(dataset: str, points: pd.DataFrame, areas: Mapping[str, str]) -> str:
    """ROC curves of the models on one dataset.

    Args:
        dataset: the title.
        points: rows (model, fpr, tpr); none where the curve is undefined.
        areas: model name -> its AUC as text, in the legend's order.
    """
    figure, axes = new_figure(3.45, 3.5)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for colour, (model, area) in zip(MODEL_COLOURS, areas.items(), strict=False):
        curve = points[points["model"] == model]
        axes.plot(curve["fpr"], curve["tpr"], color=colour, label=f"{model}: {area}")
    axes.set(title=dataset, xlabel="false positive rate", ylabel="true positive rate")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")
    return to_svg(figure)


@mpl.rc_context(STYLE)
def det(dataset: str, points: pd.DataFrame, rates: Mapping[str, str]) -> str:
    """DET curves of the models on one dataset, on axes of normal deviates: further left and lower is better.

    Args:
        dataset: the title.
        points: rows (model, fpr_deviate, fnr_deviate); none where the curve is undefined.
        rates: model name -> its equal error rate as text, in the legend's order.
    """
    figure, axes = new_figure(3.45, 3.7)
    ticks, limits = norm.ppf(DET_TICKS), norm.ppf(DET_LIMITS)
    axes.plot(limits, limits, color=GREY, linewidth=1, linestyle=":")
    for colour, (model, rate) in zip(MODEL_COLOURS, rates.items(), strict=False):
        curve = points[points["model"] == model]
        axes.plot(curve["fpr_deviate"], curve["fnr_deviate"], color=colour, label=f"{model}: EER {rate}")
    names = [f"{100 * rate:g} %" for rate in DET_TICKS]
    axes.set_xticks(ticks, names, fontsize=7)
    axes.set_yticks(ticks, names, fontsize=7)
    axes.set(title=dataset, xlabel="false positive rate", ylabel="miss rate", xlim=limits, ylim=limits)
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.4, columnspacing=1.2)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def reliability(title: str, points: pd.DataFrame) -> str:
    """Stated probability against the share of fakes, before and after calibration; on the dotted line they agree.

    Args:
        title: the title.
        points: rows (calibrated, probability, fakes, count); the dots' areas show the counts.
    """
    figure, axes = new_figure(3.45, 3.3)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for colour, calibrated, name in ((ORANGE, False, "score"), (BLUE, True, "calibrated")):
        curve = points[points["calibrated"] == calibrated]
        areas = 8 + 90 * curve["count"] / max(curve["count"].sum(), 1)
        axes.plot(curve["probability"], curve["fakes"], color=colour, linewidth=1.2, label=name)
        axes.scatter(curve["probability"], curve["fakes"], areas, color=colour)
    axes.set(title=title, xlabel="stated probability of fake", ylabel="share of fakes")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(loc="upper left")
    return to_svg(figure)


@mpl.rc_context(STYLE)
def ladder(dataset: str, table: pd.DataFrame) -> str:
    """Video AUC against the level of each distortion of one dataset; level 0 are the same frames as they are stored.

    Args:
        dataset: the title.
        table: rows (distortion, level, video_auc), those of level 0 under the distortion "none".
    """
    figure, axes = new_figure(3.45, 3.7)
    stored = table[table["level"] == 0]
    kinds = table[table["level"] > 0].groupby("distortion", sort=False)
    styles = cycle(zip(LADDER_COLOURS, LADDER_MARKERS, strict=True))
    for (kind, rows), (colour, marker) in zip(kinds, styles, strict=False):
        course = pd.concat([stored, rows]).sort_values("level")
        axes.plot(course["level"], course["video_auc"], color=colour, marker=marker, markersize=4, label=str(kind))
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
    axes.set(title=dataset, xlabel="level (0: as stored)", ylabel="video AUC (dotted: chance)")
    axes.set_ylim(min(0.48, table["video_auc"].min() - 0.02), 1.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)
    return to_svg(figure)
