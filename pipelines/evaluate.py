"""Stage `evaluate`: the detector and the frozen-backbone probe on the test datasets; figures, curves and report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from masm import __version__, registry
from masm.console import STDERR, Progress
from masm.costs import read_costs
from masm.curves import det_points, reliability_points, roc_points
from masm.data.findings import confounded_datasets
from masm.data.table import read_table
from masm.data.versions import digests
from masm.decisions import Decision, Level, read_decisions
from masm.delong import Difference
from masm.detector import Detector
from masm.embeddings import origin_of, read_embeddings, spread_frames, write_embeddings
from masm.evaluation import evaluate, paired_bootstrap, paired_delong
from masm.report import DatasetCard, Mistake, ReportInputs, hardest_mistakes, write_report
from masm.robustness import Robustness, robustness
from masm.scorecard import ADAPTED, Estimate, Scorecard, number, signed
from masm.scores import read_scores
from masm.scoring import subspace_shares
from masm.separability import Separability, separability
from masm.settings import OPERATION, Settings
from masm.slices import slice_table
from pipelines import run_stage
from pipelines.scores import score_models
from pipelines.searched import read_outcome

MODELS = {ADAPTED: "detector", "probe": "probe"}
"""The models that are compared, and their folders under models/."""


@dataclass(frozen=True)
class Results:
    """What the scores of the test datasets show; each value is as `masm.report.ReportInputs` has it."""

    scores: Mapping[str, pd.DataFrame]
    decisions: Mapping[str, Mapping[Level, Decision]]
    cards: Mapping[str, Scorecard]
    gains: Mapping[str, Estimate]
    delong: Mapping[str, Difference]
    robustness: Robustness
    slices: pd.DataFrame


def main(settings: Settings) -> None:
    """Write reports/: scores.parquet, embeddings.parquet, metrics.json, report.html, and the curves as CSV."""
    reports = settings.root / "reports"
    reports.mkdir(exist_ok=True)
    folders = {name: settings.root / "models" / folder for name, folder in MODELS.items()}
    detectors = {name: Detector.load(folder, merged=True) for name, folder in folders.items()}
    score_models(settings, detectors, folders, reports / "scores.parquet")
    decisions = {name: read_decisions(detector.card) for name, detector in detectors.items()}
    results = _results(settings, read_scores(reports / "scores.parquet"), decisions)
    shares = _shares(settings)
    separated = _separability(settings, detectors[ADAPTED])
    metrics = {**_metrics(results), **_share_metrics(shares), **_separability_metrics(separated)}
    (reports / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    _write_curves(reports, results, separated)
    write_report(reports / "report.html", _report_inputs(settings, results, shares, separated))
    figures = {name: number(card.video_auc.value) for name, card in results.cards.items()}
    STDERR.print(f"evaluate: mean video AUC {figures}; reports/report.html shows all", highlight=False)


def _results(
    settings: Settings, scores: Mapping[str, pd.DataFrame], decisions: Mapping[str, Mapping[Level, Decision]]
) -> Results:
    """A dataset whose reals and fakes come from different sources is judged too, but enters no mean."""
    tests, draws, seed = settings.with_role("test"), settings.evaluate.draws, settings.seed
    left_out = confounded_datasets(settings.root / "reports" / "checks.json").keys()
    adapted, probe = (scores[name] for name in MODELS)
    judged = {**{name: [name] for name in tests}, "macro": [name for name in tests if name not in left_out]}
    tables = [slice_table(adapted, column, draws, seed) for column in settings.evaluate.slices]
    return Results(
        scores=scores,
        decisions=decisions,
        cards={name: evaluate(table, decisions[name], draws, seed, left_out) for name, table in scores.items()},
        gains={
            name: paired_bootstrap(adapted, probe, datasets, draws=draws, seed=seed)
            for name, datasets in judged.items()
        },
        delong={name: found for name in tests if (found := paired_delong(adapted, probe, name)) is not None},
        robustness=robustness(adapted, draws, seed, left_out),
        slices=pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(),
    )


def _write_curves(reports: Path, results: Results, separated: Separability) -> None:
    """The points that `dvc plots` shows; column `curve` tells lines of a dataset apart (.dvc/plots/curves.json)."""
    roc = roc_points(results.scores)
    det = det_points(roc)
    reliability = reliability_points(results.scores, results.decisions)
    stated = reliability["calibrated"].map({False: "score", True: "calibrated"})
    ladder = results.robustness.table
    files = {
        "roc": roc.assign(curve=roc["model"]),
        "det": det.assign(curve=det["model"]),
        "reliability": reliability.assign(curve=reliability["model"] + ", " + reliability["level"] + ", " + stated),
        "robustness": ladder.assign(curve=ladder["distortion"]),
        "embedding_map": separated.points,
    }
    for name, points in files.items():
        points.to_csv(reports / f"{name}.csv", index=False)


def _shares(settings: Settings) -> pd.DataFrame:
    """Which artifact subspaces fire on the test datasets; no rows where there are none, or none were asked for."""
    detector = Detector.load(settings.root / "models" / MODELS[ADAPTED])
    frames = settings.evaluate.share_frames
    if not detector.layers or not frames:
        return pd.DataFrame()
    return subspace_shares(detector, settings, settings.with_role("test"), frames)


def _share_metrics(shares: pd.DataFrame) -> dict[str, float]:
    rows = shares.to_dict("records")
    return {f"{ADAPTED}.{row['dataset']}.{row['method']}.share_{row['subspace']}": row["share"] for row in rows}


def _separability(settings: Settings, detector: Detector) -> Separability:
    """What the adapted model's embeddings of some test frames show; they are kept in reports/embeddings.parquet."""
    path, folder, tests = settings.root / "reports/embeddings.parquet", MODELS[ADAPTED], settings.with_role("test")
    chosen = spread_frames(settings, tests, settings.evaluate.embedding_frames)
    origin = origin_of(settings, tests, f"models/{folder}", settings.root / "models" / folder)
    with Progress() as bar:
        task = bar.add_task("embed", total=sum(map(len, chosen.values())))
        write_embeddings(path, detector, settings, chosen, origin, partial(bar.advance, task))
    return separability(*read_embeddings(path), settings.seed)


def _separability_metrics(separated: Separability) -> dict[str, float]:
    return {f"embeddings.{name}": value for name, value in separated.metrics().items()}


def _metrics(results: Results) -> dict[str, float]:
    """Flat figures for `dvc metrics` and MLflow; undefined ones are left out."""
    metrics = {f"{name}.{key}": value for name, card in results.cards.items() for key, value in card.metrics().items()}
    metrics |= {f"{ADAPTED}.{key}": value for key, value in results.robustness.metrics().items()}
    for name, gain in results.gains.items():
        prefix = "gain.video_auc" if name == "macro" else f"gain.{name}.video_auc"
        metrics |= {prefix: gain.value, f"{prefix}_low": gain.low, f"{prefix}_high": gain.high}
    metrics |= {f"gain.{name}.delong_p": found.p_value for name, found in results.delong.items()}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _report_inputs(
    settings: Settings, results: Results, shares: pd.DataFrame, separated: Separability
) -> ReportInputs:
    """What the report shows, gathered from this stage and the former ones."""
    training = json.loads((settings.root / "models" / "train.json").read_text())
    outcome = read_outcome(settings)
    client = registry.connect(settings.mlflow)
    method = settings.adapter.method
    return ReportInputs(
        model=f"{method} on {settings.backbone.name}",
        method=method,
        verdict=_verdict(results),
        scores=results.scores,
        decisions=results.decisions,
        scorecards=results.cards,
        differences=results.gains,
        delong=results.delong,
        robustness=results.robustness,
        slices=results.slices,
        mistakes=_mistakes(settings, results),
        history=pd.DataFrame(training["history"]),
        masks=training["mask_history"] if _has_mask(settings, training) else [],
        steps=training["steps"],
        shares=shares,
        separability=separated,
        search=outcome,
        costs=read_costs(settings, outcome.trials),
        datasets=_dataset_cards(settings),
        candidates=len(registry.list_versions(client, settings.mlflow.model)) + 1,
        settings={**_shown(settings), "hyperparameters": training["hyperparameters"]},
        versions={
            "masm": __version__,
            **json.loads((settings.root / "models/detector/detector.json").read_text())["versions"],
        },
    )


def _has_mask(settings: Settings, training: Mapping[str, Any]) -> bool:
    kind = training["hyperparameters"].get("mask_kind") or settings.mask.kind
    return settings.adapter.method == "masm" and kind != "none"


def _verdict(results: Results) -> str:
    adapted, probe = (number(results.cards[name].video_auc.value) for name in MODELS)
    gain = results.gains["macro"]
    return (
        f"Mean video AUC on unseen test datasets is {adapted}; the frozen-backbone probe reaches {probe} (difference "
        f"{signed(gain.value)}, 95 % interval {gain.interval()})."
    )


def _mistakes(settings: Settings, results: Results) -> list[Mistake] | None:
    """Pictures of the hardest errors, where the setting allows pictures in the report."""
    if not (count := settings.evaluate.thumbnails):
        return None
    tables = {name: settings.table(name) for name in settings.with_role("test")}
    threshold = results.decisions[ADAPTED]["video"].threshold
    return hardest_mistakes(results.scores[ADAPTED], threshold, count, tables)


def _shown(settings: Settings) -> dict[str, Any]:
    """The settings that say what came out."""
    return settings.model_dump(mode="json", exclude={*OPERATION, "pretrain", "code"})


def _dataset_cards(settings: Settings) -> list[DatasetCard]:
    """A card for each dataset; one whose reals and fakes come from different sources says so."""
    signs = confounded_datasets(settings.root / "reports" / "checks.json")
    notes = {name: f"reals and fakes come from different sources: {sign}" for name, sign in signs.items()}
    return [_dataset_card(settings, name, digest, notes.get(name, "")) for name, digest in digests(settings).items()]


def _dataset_card(settings: Settings, name: str, digest: str, note: str) -> DatasetCard:
    rows = read_table(settings.table(name), ["identity", "method", "video_id"]).to_pandas()
    return DatasetCard(
        name=name,
        role=settings.datasets[name].role,
        people=rows["identity"].nunique(),
        videos=len(rows.drop_duplicates(["method", "video_id"])),
        frames=len(rows),
        digest=digest,
        licence=settings.licence(name),
        note=note,
    )


if __name__ == "__main__":
    run_stage(main)
