"""Plots of the search: what was tried, what came of it, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from masm.plots.style import BLUE, GREY, INK, LINES, STYLE, VERMILION, new_figure, to_svg

ABSENT = -0.22
"""Height on an axis of the parallel coordinates of trials that did not draw its hyper-parameter."""
LABEL_PLACES: dict[float, Any] = {0.0: ((0, -4), "center", "top"), 1.0: ((0, 4), "center", "bottom")}
"""Offset in points, and alignment, of what is written at the ends of an axis."""
STATES = {"COMPLETE": "complete", "PRUNED": "stopped early", "FAIL": "failed"}


@dataclass(frozen=True)
class Outcome:
    """What a search left.

    Attributes:
        trials: search/trials.csv: columns trial, state (a key of STATES), epochs, score (NaN where it failed), one for
            each of `ranges` (NaN where a condition left it out), the second objective, and seconds.
        epochs: search/epochs.csv: columns trial, epoch and score.
        ranges: uniform, loguniform or choice, by the name of what was searched; none where nothing was.
        chosen: the trial that was taken.
        second: name of the second objective; empty where there is none.
        tolerance: of scores below the best that count as good as it, where there is a second objective.
        front: complete trials that no other betters in one objective without losing in the other.
        importance: share of each of `ranges` in what sets the best trials apart; none where there are too few trials.
    """

    trials: pd.DataFrame
    epochs: pd.DataFrame
    ranges: Mapping[str, str]
    chosen: int
    second: str = ""
    tolerance: float = 0.0
    front: Sequence[int] = ()
    importance: Mapping[str, float] = field(default_factory=dict)

    def count(self, state: str) -> int:
        """How many trials ended like this."""
        return int((self.trials["state"] == state).sum())


def search_plots(outcome: Outcome) -> dict[str, str]:
    """All of the plots that this search gives something for, as SVG by name."""
    plots = {"history": history(outcome)}
    if outcome.epochs["epoch"].max() > 1:
        plots["epochs"] = learning_curves(outcome)
    if outcome.second:
        plots["front"] = pareto_front(outcome)
    if outcome.importance:
        plots["importance"] = importances(outcome.importance)
    if outcome.ranges:
        plots["parallel_coordinates"] = parallel_coordinates(outcome)
    return plots


@mpl.rc_context(STYLE)
def history(outcome: Outcome) -> str:
    """Score of each trial, and the best so far of those that were trained to their end."""
    figure, axes = new_figure(3.45, 3.0)
    whole = outcome.trials[outcome.trials["state"] == "COMPLETE"]
    axes.step(whole["trial"], whole["score"].cummax(), where="post", color=GREY, linewidth=1, label="best so far")
    _draw_trials(axes, outcome, outcome.trials["trial"])
    _mark_failed(axes, outcome)
    axes.set(title="Score per trial", xlabel="trial", ylabel="search score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    figure.legend(loc="outside lower center", ncols=3, handletextpad=0.4, columnspacing=1.0)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def learning_curves(outcome: Outcome) -> str:
    """Score after each epoch, a line for each trial; one that was stopped early ends in an open point."""
    figure, axes = new_figure(3.45, 3.0)
    states = outcome.trials.set_index("trial")["state"]
    for trial, rows in outcome.epochs.groupby("trial", sort=True):
        if trial != outcome.chosen:
            axes.plot(rows["epoch"], rows["score"], color=BLUE, linewidth=0.8, alpha=0.45)
            if states[trial] == "PRUNED":
                axes.plot(rows["epoch"].iloc[-1], rows["score"].iloc[-1], **_point("PRUNED"))
    rows = outcome.epochs[outcome.epochs["trial"] == outcome.chosen]
    axes.plot(rows["epoch"], rows["score"], color=VERMILION, label=f"taken: trial {outcome.chosen}")
    axes.set(title="Score per epoch", xlabel="epoch", ylabel="search score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    figure.legend(loc="outside lower center")
    return to_svg(figure)


@mpl.rc_context(STYLE)
def pareto_front(outcome: Outcome) -> str:
    """Score against the second objective; a line joins the trials that are best in their way, a band is about as good
    as the best score."""
    figure, axes = new_figure(3.45, 3.0)
    whole = outcome.trials[outcome.trials["state"] == "COMPLETE"]
    best = whole["score"].max()
    axes.axhspan(best - outcome.tolerance, best, color=LINES, linewidth=0, label=f"within {outcome.tolerance:g}")
    front = whole[whole["trial"].isin(outcome.front)].sort_values(outcome.second)
    axes.step(front[outcome.second], front["score"], where="post", color=GREY, linewidth=1, label="front")
    _draw_trials(axes, outcome, outcome.trials[outcome.second])
    axes.set(title=f"Score and {_words(outcome.second)}", xlabel=_words(outcome.second), ylabel="search score")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    figure.legend(loc="outside lower center", ncols=3, handletextpad=0.4, columnspacing=1.0)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def importances(shares: Mapping[str, float]) -> str:
    """A bar for each hyper-parameter, the greatest on top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure, axes = new_figure(3.45, 0.9 + 0.24 * len(ordered))
    bars = axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="{:.2f}", padding=3, fontsize=8)
    axes.set(title="Importance", xlim=(0, 1.2 * max(shares.values())), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def parallel_coordinates(outcome: Outcome) -> str:
    """A line for each trial through what it drew, to its score; the one that was taken is on top."""
    known = outcome.trials.dropna(subset="score")
    kinds = {**outcome.ranges, **({outcome.second: "uniform"} if outcome.second else {}), "score": "uniform"}
    scales = [_scale(known[name], kind) for name, kind in kinds.items()]
    heights = np.column_stack([scale.heights for scale in scales])
    figure, axes = new_figure(max(3.6, 1.0 + 1.0 * len(kinds)), 3.2)
    colours = mpl.colormaps["cividis"](0.9 * heights[:, -1])
    styles = known["state"].map({"COMPLETE": "-", "PRUNED": ":"}).tolist()
    for row in np.argsort(heights[:, -1]):
        axes.plot(heights[row], color=colours[row], linestyle=styles[row], linewidth=1, alpha=0.75)
    taken = heights[known["trial"] == outcome.chosen][0]
    axes.plot(taken, color=VERMILION, linewidth=2.4, marker="o", markersize=4)
    for place, scale in enumerate(scales):
        _draw_axis(axes, place, scale)
    if (heights < 0).any():
        axes.text(-0.5, ABSENT, "not drawn", va="center", fontsize=7, color=GREY)
    axes.set_xticks(range(len(kinds)), [name.replace("_", "\n") for name in kinds])
    axes.set(yticks=[], ylim=(-0.3, 1.16), xlim=(-0.5, len(kinds) - 0.5), title="Settings tried")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    return to_svg(figure)


@dataclass(frozen=True)
class _Scale:
    """An axis of the parallel coordinates: where the trials' values lie, and what is written where."""

    heights: np.ndarray
    labels: Mapping[str, float]


def _scale(values: pd.Series, kind: str) -> _Scale:
    """Choices lie evenly, numbers from the least to the greatest that was tried, on their own scale."""
    drawn = values.dropna()
    if kind == "choice":
        steps = sorted(drawn.unique())
        places = {value: index / (len(steps) - 1) if len(steps) > 1 else 0.5 for index, value in enumerate(steps)}
        heights = values.map(places)
        return _Scale(heights.fillna(ABSENT).to_numpy(dtype=float), {_text(value): places[value] for value in steps})
    numbers = np.log(values) if kind == "loguniform" else values
    low, high = float(numbers.min()), float(numbers.max())
    if not high > low:
        return _Scale(np.where(values.notna(), 0.5, ABSENT), {_text(value): 0.5 for value in drawn[:1]})
    heights = ((numbers - low) / (high - low)).fillna(ABSENT)
    return _Scale(heights.to_numpy(dtype=float), {_text(drawn.min()): 0.0, _text(drawn.max()): 1.0})


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = float(value)
    return f"{number:.3g}" if abs(number) < 10_000 else EngFormatter(places=0, sep="")(number)


def _draw_axis(axes: Axes, place: int, scale: _Scale) -> None:
    axes.plot([place, place], [0, 1], color=GREY, linewidth=0.8, zorder=1)
    for text, height in scale.labels.items():
        (x, y), across, along = LABEL_PLACES.get(height, ((5, 0), "left", "center"))
        axes.annotate(text, (place, height), (x, y), textcoords="offset points", ha=across, va=along, fontsize=8)


def _draw_trials(axes: Axes, outcome: Outcome, x: pd.Series) -> None:
    """Points at `x` and their scores: filled, open where stopped early, a star where taken."""
    trials = outcome.trials
    for state in ("COMPLETE", "PRUNED"):
        if (chosen := trials["state"] == state).any():
            axes.plot(x[chosen], trials["score"][chosen], label=STATES[state], **_point(state))
    taken = trials["trial"] == outcome.chosen
    score = trials["score"][taken]
    label = f"taken: trial {outcome.chosen}, {score.iloc[0]:.3f}"
    axes.plot(x[taken], score, "*", color=VERMILION, markersize=12, label=label)


def _mark_failed(axes: Axes, outcome: Outcome) -> None:
    failed = outcome.trials.loc[outcome.trials["state"] == "FAIL", "trial"]
    if len(failed):
        axes.plot(
            failed,
            np.full(len(failed), 0.03),
            "x",
            color=INK,
            markersize=4,
            transform=axes.get_xaxis_transform(),
            label=STATES["FAIL"],
        )


def _point(state: str) -> dict[str, Any]:
    fill = BLUE if state == "COMPLETE" else "white"
    return {"marker": "o", "linestyle": "", "color": BLUE, "markerfacecolor": fill, "markersize": 4.5}


def _words(name: str) -> str:
    return name.replace("_", " ")
