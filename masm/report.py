"""The report: one HTML file that opens offline, with the figures, the plots and the model card."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from masm import plots
from masm.evaluation import roc_points, video_scores
from masm.plots import MaskState
from masm.scorecard import DatasetRow, Estimate, Scorecard, number
from masm.separability import GROUPINGS, NEIGHBOURS, Separability

TEMPLATE = Path(__file__).with_name("report.html")

METHODS = {
    "masm": "MASM, “Deepfake Detection with Multi-Artifact Subspace Fine-Tuning and Selective Layer Masking” (arXiv "
    "2601.01041, renamed FMSD in its third version). The split into subspaces, the layer mask and the two constraints "
    "are stated in its abstracts; their formulas are this project's reconstruction, not the authors' code.",
    "effort": "The architecture of Effort (ICML 2025, arXiv 2411.15633): the smallest singular triplet of q, k, v and "
    "proj learns, without penalties.",
    "lora": "LoRA (arXiv 2106.09685), by peft.",
    "layernorm": "Scale and shift of the normalisation layers under a head on the L2-normalised feature, as in GenD "
    "(WACV 2026).",
    "full": "Fine-tuning of all weights.",
    "probe": "A linear head on the frozen backbone.",
}
"""What the model card says of each method of adaptation."""


@dataclass(frozen=True)
class DatasetCard:
    """What the model card says of one dataset; `note` warns, say that its classes differ in source."""

    name: str
    role: str
    people: int
    videos: int
    frames: int
    digest: str
    note: str = ""


@dataclass(frozen=True)
class ReportInputs:
    """All that the report shows.

    Attributes:
        model: the headline, for instance "masm on starter".
        method: how the backbone was adapted, a key of METHODS.
        verdict: one sentence below it.
        scores: Scores of the test datasets by model name, the adapted model first.
        scorecards: the scorecards of the same models.
        differences: adapted model minus the second one, mean video AUC, by dataset name and "macro".
        history: columns epoch, loss (training), val_auc, and val_auc.DATASET where there are several; the epoch of
            the highest val_auc was kept. NaN is undefined.
        masks: the layer mask's states in order of their steps, the first at step 0; none without a mask.
        steps: number of training steps.
        shares: columns dataset, method, subspace, share and frames; empty without subspaces.
        separability: of the adapted model's embeddings; without rows where none were asked for.
        trials: columns trial, score (NaN where it failed) and one per searched setting; empty without search.
        datasets: every dataset that the model or its choice has seen, or that judges it.
        candidates: how many models these test datasets have judged so far, this one included.
        settings: nested settings, shown flat.
        versions: program or library -> version or revision.
    """

    model: str
    method: str
    verdict: str
    scores: Mapping[str, pd.DataFrame]
    scorecards: Mapping[str, Scorecard]
    differences: Mapping[str, Estimate]
    history: pd.DataFrame
    masks: Sequence[MaskState]
    steps: int
    shares: pd.DataFrame
    separability: Separability
    trials: pd.DataFrame
    datasets: Sequence[DatasetCard]
    candidates: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Write the report to `path`; the same inputs give the same bytes."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "signed": signed}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    html = template.render(
        inputs=inputs,
        main=next(iter(inputs.scorecards.values())),
        results=_results(inputs),
        plots=_plots(inputs),
        settings=flatten(inputs.settings),
        method=METHODS[inputs.method],
        neighbours=NEIGHBOURS,
    )
    partial = path.with_name(path.name + ".partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)


def signed(value: float) -> str:
    """Three decimals with the sign, or "undefined"."""
    return f"{value:+.3f}" if math.isfinite(value) else "undefined"


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
        "histograms": _histograms(inputs),
        "history": _history_plots(inputs.history),
        "masks": _mask_plots(inputs),
        "shares": [] if inputs.shares.empty else [plots.share_map(inputs.shares)],
        "embeddings": _embedding_maps(inputs.separability.points),
        "trials": _trial_plots(inputs.trials),
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
    by_dataset = plots.intervals("By dataset", list(datasets.items()))
    return [by_dataset, plots.intervals("By forgery method", list(methods.items()))] if methods else [by_dataset]


def _roc_plots(inputs: ReportInputs) -> list[str]:
    points = roc_points(inputs.scores)
    drawn = []
    for row, rows, _ in _results(inputs):
        areas = {model: number(each.video_auc.value) for model, each in zip(inputs.scorecards, rows, strict=True)}
        drawn.append(plots.roc(row.dataset, points[points["dataset"] == row.dataset], areas))
    return drawn


def _histograms(inputs: ReportInputs) -> list[str]:
    """Of the adapted model, at its threshold."""
    model, card = next(iter(inputs.scorecards.items()))
    videos = video_scores(inputs.scores[model])
    return [
        plots.histogram(row.dataset, videos[videos["dataset"] == row.dataset], card.threshold) for row in card.datasets
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
        plots.line("Training loss", history["epoch"], history["loss"], plots.VERMILION),
        plots.line("Validation AUC", history["epoch"], history["val_auc"], plots.BLUE, best),
        *(plots.line(title, history["epoch"], history[name], plots.BLUE) for name, title in of_datasets.items()),
    ]


def _mask_plots(inputs: ReportInputs) -> list[str]:
    if not inputs.masks:
        return []
    shares = plots.free_shares(inputs.masks, inputs.steps)
    return [plots.mask_map(shares), plots.mask_course(inputs.masks, inputs.steps)]


def _embedding_maps(points: pd.DataFrame) -> list[str]:
    """The same map three times, once for each of GROUPINGS."""
    if points.empty:
        return []
    named = points.assign(label=points["label"].map({0: "real", 1: "fake"}))
    xy = points[["x", "y"]].to_numpy()
    return [plots.embedding_map(f"by {grouping}", xy, named[grouping].tolist()) for grouping in GROUPINGS]


def _trial_plots(trials: pd.DataFrame) -> list[str]:
    if trials.empty or trials["score"].notna().sum() == 0:
        return []
    return [plots.trial_scores(trials), plots.parallel_coordinates(trials)]
