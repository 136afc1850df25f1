"""Plots of the artifact subspaces: which could move when, and which fired."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypedDict

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from masm.plots.style import INK, STYLE, new_figure, to_svg

COURSE_COLUMNS = 400  # steps that the course of the mask shows at most


class MaskState(TypedDict):
    """Which subspaces of each layer may move from a step on."""

    step: int
    free: dict[str, list[bool]]


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
    figure, axes = new_figure(min(9.0, 1.8 + 0.22 * cells.shape[1]), 1.1 + 0.24 * len(blocks))
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
    figure, axes = new_figure(6.4, 1.0 + 0.15 * len(layers))
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
    figure, axes = new_figure(2.4 + 0.75 * table.shape[1], 0.9 + 0.3 * len(table))
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


def _place(layer: str) -> tuple[str, str]:
    """("block 3", "qkv.q") for "blocks.3.attn.qkv.q"; a name without a number is a row of its own."""
    match = re.match(r"\D*?(\d+)\.(.+)", layer)
    return (f"block {match[1]}", ".".join(match[2].split(".")[-2:])) if match else (layer, "")
