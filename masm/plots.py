"""Plots of the report, as SVG text that is the same for the same data."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict
from xml.sax.saxutils import quoteattr

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from masm.scorecard import Estimate

# Okabe and Ito's palette, told apart with any kind of colour vision (https://jfly.uni-koeln.de/color).
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7A7F87"
SKY, PURPLE = "#56B4E9", "#CC79A7"
MODEL_COLOURS = (BLUE, ORANGE, GREEN, VERMILION)
MODEL_MARKERS = ("o", "s", "D", "^")
INK, LINES = "#2B2F36", "#E3E6EB"
GROUP_COLOURS = (BLUE, ORANGE, PURPLE, SKY, INK)
GROUP_MARKERS = ("s", "D", "v", "P", "X", "*", "<")
CLASSES = {"real": (GREEN, "o"), "fake": (VERMILION, "^")}
COURSE_COLUMNS = 400  # steps that the course of the mask shows at most

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


class MaskState(TypedDict):
    """Which subspaces of each layer may move from a step on."""

    step: int
    free: dict[str, list[bool]]


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


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure, figure.subplots()


@mpl.rc_context(STYLE)
def roc(dataset: str, points: pd.DataFrame, areas: Mapping[str, str]) -> str:
    """ROC curves of the models on one dataset.

    Args:
        dataset: the title.
        points: rows (model, fpr, tpr); none where the curve is undefined.
        areas: model name -> its AUC as text, in the legend's order.
    """
    figure, axes = _figure(3.45, 3.5)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for colour, (model, area) in zip(MODEL_COLOURS, areas.items(), strict=False):
        curve = points[points["model"] == model]
        axes.plot(curve["fpr"], curve["tpr"], color=colour, label=f"{model}: {area}")
    axes.set(title=dataset, xlabel="false positive rate", ylabel="true positive rate")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")
    return to_svg(figure)


@mpl.rc_context(STYLE)
def intervals(title: str, rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> str:
    """Dots with 95 % whiskers: one row per name, one dot per model; an undefined one is said in words."""
    models = list(rows[0][1])
    figure, axes = _figure(5.2, 1.0 + 0.5 * len(rows))
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
    figure, axes = _figure(3.45, 3.0)
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


@mpl.rc_context(STYLE)
def line(title: str, x: pd.Series, y: pd.Series, colour: str, best: int | None = None) -> str:
    """One curve; `best` marks a position in it."""
    figure, axes = _figure(3.45, 2.5)
    known = y.notna()
    axes.plot(x[known], y[known], color=colour, marker="o", markersize=3.5)
    if best is not None:
        axes.plot(x.iloc[best], y.iloc[best], "o", color=INK, markersize=8, markerfacecolor="none", label="kept")
        axes.legend()
    axes.set(title=title, xlabel=str(x.name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    return to_svg(figure)


def free_shares(history: Sequence[MaskState], last_step: int) -> dict[str, np.ndarray]:
    """Share of the steps from the first state to `last_step` in which each subspace of a layer could move."""
    steps = [state["step"] for state in history]
    spans = np.diff([*steps, max(last_step, steps[-1] + 1)])
    return {
        layer: np.average([state["free"][layer] for state in history], axis=0, weights=spans)
        for layer in history[0]["free"]
    }


@mpl.rc_context(STYLE)
def mask_map(shares: Mapping[str, np.ndarray]) -> str:
    """Heat map of `free_shares`: rows are blocks, groups of columns kinds of layer, cells subspaces."""
    places = {layer: _place(layer) for layer in shares}
    blocks = list(dict.fromkeys(block for block, _ in places.values()))
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    subspaces = max(len(share) for share in shares.values())
    cells = np.full((len(blocks), len(kinds) * subspaces), np.nan)
    for layer, (block, kind) in places.items():
        first = kinds.index(kind) * subspaces
        cells[blocks.index(block), first : first + len(shares[layer])] = shares[layer]
    figure, axes = _figure(min(9.0, 1.8 + 0.22 * cells.shape[1]), 1.1 + 0.24 * len(blocks))
    mesh = axes.pcolormesh(cells, cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=0.5)
    for edge in range(0, cells.shape[1] + 1, subspaces):
        axes.axvline(edge, color="white", linewidth=3)
    axes.set_yticks(np.arange(len(blocks)) + 0.5, blocks)
    axes.set_xticks((np.arange(len(kinds)) + 0.5) * subspaces, kinds)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.grid(visible=False)
    bar = figure.colorbar(mesh, ax=axes, format=PercentFormatter(1, decimals=0), aspect=12)
    bar.set_label("of the steps free")
    bar.outline.set_visible(False)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def mask_course(history: Sequence[MaskState], last_step: int) -> str:
    """Which subspaces could move when: rows are subspaces, layer after layer, columns are steps."""
    layers = list(history[0]["free"])
    starts = [state["step"] for state in history]
    steps = np.linspace(0, last_step, min(last_step, COURSE_COLUMNS), endpoint=False)
    columns = np.searchsorted(starts, steps, side="right") - 1
    free = np.array([[can for layer in layers for can in state["free"][layer]] for state in history], dtype=float)
    edges = np.cumsum([0, *(len(history[0]["free"][layer]) for layer in layers)])
    figure, axes = _figure(6.4, 1.0 + 0.15 * len(layers))
    axes.imshow(
        free[columns].T, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="none",
        extent=(0, last_step, edges[-1], 0),
    )  # fmt: skip
    axes.hlines(edges[1:-1], 0, last_step, color="white", linewidth=0.5)
    axes.set_yticks((edges[:-1] + edges[1:]) / 2, [" ".join(_place(layer)) for layer in layers], fontsize=6)
    axes.set(title="Free (light) and masked (dark) over training", xlabel="step")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def share_map(shares: pd.DataFrame) -> str:
    """Mean shares as a table of coloured cells: rows are datasets' methods, columns subspaces.

    Args:
        shares: columns dataset, method, subspace (from 1) and share.
    """
    table = shares.pivot_table(index=["dataset", "method"], columns="subspace", values="share", sort=False)
    limit = max(float(table.abs().max().max()), 1e-9)
    figure, axes = _figure(2.4 + 0.75 * table.shape[1], 0.9 + 0.3 * len(table))
    axes.pcolormesh(table.to_numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit, edgecolors="white", linewidth=1)
    for (row, column), share in np.ndenumerate(table.to_numpy()):
        ink = "white" if abs(share) > 0.6 * limit else INK
        axes.text(column + 0.5, row + 0.5, f"{share:+.2f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_yticks(np.arange(len(table)) + 0.5, [f"{dataset}: {method}" for dataset, method in table.index])
    axes.set_xticks(np.arange(table.shape[1]) + 0.5, [f"subspace {index}" for index in table.columns])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.grid(visible=False)
    return to_svg(figure)


@mpl.rc_context(STYLE)
def embedding_map(title: str, points: np.ndarray, groups: Sequence[str]) -> str:
    """Points (n, 2) of a map, coloured and shaped by their group (n,); the legend counts them.

    The points are one picture in the SVG, the size of which does not grow with their number.
    """
    counts = pd.Series(groups).value_counts(sort=False)
    columns = max(1, min(3, 52 // (max(len(name) for name in counts.index) + 9)))
    figure, axes = _figure(3.45, 3.35 + 0.19 * -(-len(counts) // columns))
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


def _place(layer: str) -> tuple[str, str]:
    """("block 3", "qkv.q") for "blocks.3.attn.qkv.q"; a name without a number is a row of its own."""
    match = re.match(r"\D*?(\d+)\.(.+)", layer)
    return (f"block {match[1]}", ".".join(match[2].split(".")[-2:])) if match else (layer, "")


@mpl.rc_context(STYLE)
def trial_scores(trials: pd.DataFrame) -> str:
    """Score of each search trial, the best so far as a step line, the best one marked."""
    figure, axes = _figure(3.45, 3.0)
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
    figure, axes = _figure(max(3.6, 1.0 + 0.95 * len(axes_of)), 3.0)
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
