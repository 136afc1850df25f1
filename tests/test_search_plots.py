"""Plots of the search, from small tables."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from masm.plots.search import ABSENT, Outcome, _scale, search_plots

RANGES = {"rank": "choice", "mask_kind": "choice", "mask_threshold": "uniform", "lr": "loguniform"}


def make_outcome(count: int = 12, epochs: int = 3, seed: int = 0) -> Outcome:
    """A search whose every third trial was stopped early, and whose last one failed, if there are several."""
    rng = np.random.default_rng(seed)
    rows, lines = [], []
    for trial in range(count):
        state = "FAIL" if count > 2 and trial == count - 1 else "PRUNED" if trial % 3 == 2 else "COMPLETE"
        curve = 0.5 + np.sort(rng.uniform(0, 0.45, 1 if state == "PRUNED" else epochs))
        kind = ("none", "static", "adaptive")[trial % 3]
        rows.append(
            {
                "trial": trial,
                "state": state,
                "epochs": len(curve),
                "score": np.nan if state == "FAIL" else curve[-1],
                "rank": (8, 16, 32)[trial % 2],
                "mask_kind": kind,
                "mask_threshold": np.nan if kind == "none" else rng.uniform(0, 0.4),
                "lr": 10 ** rng.uniform(-4, -2),
                "trainable_parameters": 10_000.0 * (1 + trial),
                "seconds": 10.0,
            }
        )
        lines += [{"trial": trial, "epoch": epoch, "score": score} for epoch, score in enumerate(curve, 1)]
    trials = pd.DataFrame(rows)
    chosen = trials[trials["state"] == "COMPLETE"]["score"].idxmax()
    return Outcome(trials, pd.DataFrame(lines), RANGES, int(chosen))


def texts(svg: str) -> set[str]:
    return {"".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_a_full_search_has_all_plots() -> None:
    outcome = replace(
        make_outcome(),
        second="trainable_parameters",
        tolerance=0.01,
        front=[0, 1],
        importance={"lr": 0.7, "rank": 0.3},
    )
    plots = search_plots(outcome)
    assert list(plots) == ["history", "epochs", "front", "importance", "parallel_coordinates"]
    best = outcome.trials.set_index("trial")["score"][outcome.chosen]
    assert {
        "best so far",
        "complete",
        "stopped early",
        "failed",
        f"taken: trial {outcome.chosen}, {best:.3f}",
    } <= texts(plots["history"])
    assert {"lr", "0.70", "rank", "0.30"} <= texts(plots["importance"])
    assert {"front", "within 0.01", "trainable parameters"} <= texts(plots["front"])
    assert {"8", "16", "none", "static", "adaptive", "not drawn"} <= texts(plots["parallel_coordinates"])


@pytest.mark.parametrize(("count", "epochs"), [(2, 2), (2, 1), (1, 1)])
def test_few_trials_are_drawn_too(count: int, epochs: int) -> None:
    outcome = make_outcome(count, epochs)
    plots = search_plots(outcome if count > 1 else replace(outcome, ranges={}))
    expected = ["history", *(["epochs"] if epochs > 1 else []), *(["parallel_coordinates"] if count > 1 else [])]
    assert list(plots) == expected
    assert not {"stopped early", "failed"} & texts(plots["history"])


def test_numbers_lie_on_their_scale_and_choices_evenly() -> None:
    values = pd.Series([0.001, 0.1, 0.01, np.nan])
    assert _scale(values, "loguniform").heights == pytest.approx([0, 1, 0.5, ABSENT])
    assert _scale(values, "uniform").heights == pytest.approx([0, 1, 0.009 / 0.099, ABSENT])
    assert _scale(pd.Series([16.0, 8.0, 64.0, np.nan]), "choice").heights == pytest.approx([0.5, 0, 1, ABSENT])
    assert _scale(pd.Series([16.0, 8.0, 64.0, np.nan]), "choice").labels == {"8": 0, "16": 0.5, "64": 1}
    assert _scale(pd.Series(["static", "none"]), "choice").labels == {"none": 0, "static": 1}


@pytest.mark.parametrize("kind", ["choice", "uniform", "loguniform"])
def test_a_value_that_is_the_same_or_absent_everywhere_has_its_place(kind: str) -> None:
    assert _scale(pd.Series([4.0, 4.0, np.nan]), kind).heights == pytest.approx([0.5, 0.5, ABSENT])
    assert _scale(pd.Series([np.nan, np.nan]), kind).heights == pytest.approx([ABSENT, ABSENT])


def test_the_same_search_gives_the_same_bytes() -> None:
    assert search_plots(make_outcome()) == search_plots(make_outcome())
