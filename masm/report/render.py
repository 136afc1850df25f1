"""The report: one HTML file that opens offline, with the figures, the plots and the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from masm.curves import det_points, reliability_points, roc_points
from masm.evaluation import video_scores
from masm.files import write_text
from masm.plots.curves import det, ladder, reliability, roc
from masm.plots.embeddings import embedding_map
from masm.plots.scores import histogram, intervals
from masm.plots.search import search_plots
from masm.plots.style import BLUE, VERMILION
from masm.plots.subspaces import free_shares, mask_course, mask_map, share_map
from masm.plots.training import line
from masm.report.inputs import METHODS, ReportInputs
from masm.scorecard import DatasetRow, Estimate, Scorecard, number, signed
from masm.separability import GROUPINGS, NEIGHBOURS

TEMPLATE = Path(__file__).with_name("report.html")
TWO_SOURCES = "not in the mean: two sources"


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Write the report to `path`; the same inputs give the same bytes."""
    html = load_template(TEMPLATE).render(
        inputs=inputs,
        main=next(iter(inputs.scorecards.values())),
        results=_results(inputs),
        plots=_plots(inputs),
        settings=flatten(inputs.settings),
        method=METHODS[inputs.method],
        neighbours=NEIGHBOURS,
        two_sources=TWO_SOURCES,
    )
    write_text(path, html)


def load_template(path: Path) -> jinja2.Template:
    """A template that escapes what it is given, and fails where something is missing."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed}
    return environment.from_string(path.read_text(encoding="utf-8"))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as "section.key" -> text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _results(inputs: ReportInputs) -> list[tuple[DatasetRow, list[DatasetRow], Estimate | None]]:
    """Per dataset: the adapted model's row, all models' rows, and the paired difference if there is one."""
    by_model = [{row.dataset: row for row in card.datasets} for card in inputs.scorecards.values()]
    return [
        (row, [rows[name] for rows in by_model], inputs.differences.get(name)) for name, row in by_model[0].items()
    ]


def _plots(inputs: ReportInputs) -> dict[str, list[Markup]]:
    """SVG by section, in reading order; an empty list where there is nothing to draw."""
    drawn = {
        "intervals": _interval_plots(inputs.scorecards),
        "roc": _roc_plots(inputs),
        "det": _det_plots(inputs),
        "reliability": _reliability_plots(inputs),
        "robustness": _ladders(inputs),
        "histograms": _histograms(inputs),
        "history": _history_plots(inputs.history),
        "masks": _mask_plots(inputs),
        "shares": [] if inputs.shares.empty else [share_map(inputs.shares)],
        "embeddings": _embedding_maps(inputs.separability.points),
        "search": list(search_plots(inputs.search).values()),
    }
    # matplotlib escapes the text that it writes, so the template need not do it again.
    return {section: [Markup(svg) for svg in svgs] for section, svgs in drawn.items()}


def _interval_plots(scorecards: Mapping[str, Scorecard]) -> list[str]:
    datasets: dict[str, dict[str, Estimate]] = {}
    methods: dict[str, dict[str, Estimate]] = {}
    for model, card in scorecards.items():
        for row in card.datasets:
            datasets.setdefault(row.dataset, {})[model] = row.video_auc
            for method in row.methods:
                name = row.dataset if method.method == row.dataset else f"{row.dataset}: {method.method}"
                methods.setdefault(name, {})[model] = method.video_auc
        datasets.setdefault("macro mean", {})[model] = card.video_auc
    by_dataset = intervals("By dataset", list(datasets.items()))
    return [by_dataset, intervals("By forgery method", list(methods.items()))] if methods else [by_dataset]


def _roc_plots(inputs: ReportInputs) -> list[str]:
    points = roc_points(inputs.scores)
    drawn = []
    for row, rows, _ in _results(inputs):
        areas = {model: number(each.video_auc.value) for model, each in zip(inputs.scorecards, rows, strict=True)}
        drawn.append(roc(row.dataset, points[points["dataset"] == row.dataset], areas))
    return drawn


def _det_plots(inputs: ReportInputs) -> list[str]:
    points = det_points(roc_points(inputs.scores))
    drawn = []
    for row, rows, _ in _results(inputs):
        rates = {
            model: number(each.video.equal_error_rate) for model, each in zip(inputs.scorecards, rows, strict=True)
        }
        drawn.append(det(row.dataset, points[points["dataset"] == row.dataset], rates))
    return drawn


def _reliability_plots(inputs: ReportInputs) -> list[str]:
    """Of the adapted model: frames and videos of each dataset."""
    model = next(iter(inputs.scorecards))
    points = reliability_points({model: inputs.scores[model]}, inputs.decisions)
    return [
        reliability(f"{dataset}: {level}s", rows)
        for (dataset, level), rows in points.groupby(["dataset", "level"], sort=False)
    ]


def _ladders(inputs: ReportInputs) -> list[str]:
    left_out = next(iter(inputs.scorecards.values())).left_out
    datasets = inputs.robustness.table.groupby("dataset", sort=False)
    titles = {name: f"{name}\n{TWO_SOURCES}" for name in left_out}
    return [ladder(titles.get(str(name), str(name)), rows) for name, rows in datasets]


def _histograms(inputs: ReportInputs) -> list[str]:
    """Of the adapted model, at its threshold."""
    model, card = next(iter(inputs.scorecards.items()))
    videos = video_scores(inputs.scores[model])
    return [
        histogram(row.dataset, videos[videos["dataset"] == row.dataset], card.thresholds["video"])
        for row in card.datasets
    ]


def _history_plots(history: pd.DataFrame) -> list[str]:
    if history.empty:
        return []
    best = int(history["val_auc"].argmax())
    of_datasets = {
        name: f"Validation AUC: {name.removeprefix('val_auc.')}{'' if history[name].notna().any() else ' (undefined)'}"
        for name in map(str, history)
        if name.startswith("val_auc.")
    }
    return [
        line("Training loss", history["epoch"], history["loss"], VERMILION),
        line("Validation AUC", history["epoch"], history["val_auc"], BLUE, best),
        *(line(title, history["epoch"], history[name], BLUE) for name, title in of_datasets.items()),
    ]


def _mask_plots(inputs: ReportInputs) -> list[str]:
    if not inputs.masks:
        return []
    shares = free_shares(inputs.masks, inputs.steps)
    return [mask_map(shares), mask_course(inputs.masks, inputs.steps)]


def _embedding_maps(points: pd.DataFrame) -> list[str]:
    """The same map three times, once for each of GROUPINGS."""
    if points.empty:
        return []
    named = points.assign(label=points["label"].map({0: "real", 1: "fake"}))
    xy = points[["x", "y"]].to_numpy()
    return [embedding_map(f"by {grouping}", xy, named[grouping].tolist()) for grouping in GROUPINGS]
