"""Stage `evaluate`: the detector and the frozen-backbone probe on the test datasets; figures, curves and report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import Progress

from masm import __version__, registry
from masm.data.findings import confounded_datasets
from masm.data.table import read_table
from masm.data.versions import digests
from masm.decisions import read_decisions
from masm.detector import Detector
from masm.embeddings import origin_of, read_embeddings, spread_frames, write_embeddings
from masm.evaluation import evaluate, paired_bootstrap, roc_points
from masm.report import DatasetCard, ReportInputs, write_report
from masm.scorecard import Estimate, Scorecard
from masm.scoring import score, subspace_shares
from masm.separability import Separability, separability
from masm.settings import Settings
from pipelines import run_stage

MODELS = {"adapted": "detector", "probe": "probe"}
"""The models that are compared, and their folders under models/."""


def main(settings: Settings) -> None:
    """Write reports/scores.parquet, embeddings.parquet, metrics.json, roc.csv, embedding_map.csv and report.html."""
    reports = settings.root / "reports"
    reports.mkdir(exist_ok=True)
    detectors = {name: Detector.load(settings.root / "models" / folder, True) for name, folder in MODELS.items()}
    scores = _score(settings, detectors)
    draws, seed = settings.evaluate.draws, settings.seed
    decisions = {name: read_decisions(detector.card) for name, detector in detectors.items()}
    cards = {name: evaluate(table, decisions[name]["video"].threshold, draws, seed) for name, table in scores.items()}
    gains = _gains(settings, scores)
    shares = _shares(settings)
    separated = _separability(settings, detectors["adapted"])
    labelled = [table.assign(model=name) for name, table in scores.items()]
    pd.concat(labelled, ignore_index=True).to_parquet(reports / "scores.parquet", index=False)
    metrics = {
        **_metrics(cards, gains["macro"]),
        **_share_metrics(shares),
        **{f"embeddings.{name}": value for name, value in separated.metrics().items()},
    }
    (reports / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    roc_points(scores).to_csv(reports / "roc.csv", index=False)
    separated.points.to_csv(reports / "embedding_map.csv", index=False)
    write_report(reports / "report.html", _report_inputs(settings, scores, cards, gains, shares, separated))
    figures = {name: f"{card.video_auc.value:.3f}" for name, card in cards.items()}
    Console(stderr=True).print(f"evaluate: mean video AUC {figures}; reports/report.html shows all", highlight=False)


def _score(settings: Settings, detectors: Mapping[str, Detector]) -> dict[str, pd.DataFrame]:
    """Every frame of the test datasets, scored by each model."""
    tests = settings.with_role("test")
    frames = sum(len(read_table(settings.table(name), ["label"])) for name in tests)
    scores = {}
    with Progress(console=Console(stderr=True)) as bar:
        for name, detector in detectors.items():
            task = bar.add_task(f"score, {name}", total=frames)
            scores[name] = score(detector, settings, tests, partial(bar.advance, task))
    return scores


def _shares(settings: Settings) -> pd.DataFrame:
    """Which artifact subspaces fire on the test datasets; no rows where there are none, or none were asked for."""
    detector = Detector.load(settings.root / "models" / MODELS["adapted"])
    frames = settings.evaluate.share_frames
    if not detector.layers or not frames:
        return pd.DataFrame()
    return subspace_shares(detector, settings, settings.with_role("test"), frames)


def _share_metrics(shares: pd.DataFrame) -> dict[str, float]:
    rows = shares.to_dict("records")
    return {f"adapted.{row['dataset']}.{row['method']}.share_{row['subspace']}": row["share"] for row in rows}


def _separability(settings: Settings, detector: Detector) -> Separability:
    """What the adapted model's embeddings of some test frames show; they are kept in reports/embeddings.parquet."""
    path, folder, tests = settings.root / "reports/embeddings.parquet", MODELS["adapted"], settings.with_role("test")
    chosen = spread_frames(settings, tests, settings.evaluate.embedding_frames)
    origin = origin_of(settings, tests, f"models/{folder}", settings.root / "models" / folder)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("embed", total=sum(map(len, chosen.values())))
        write_embeddings(path, detector, settings, chosen, origin, partial(bar.advance, task))
    return separability(*read_embeddings(path), settings.seed)


def _gains(settings: Settings, scores: Mapping[str, pd.DataFrame]) -> dict[str, Estimate]:
    """Adapted minus probe, paired, for each test dataset and for their mean ("macro")."""
    tests = settings.with_role("test")
    judged = {**{name: [name] for name in tests}, "macro": tests}
    return {
        name: paired_bootstrap(
            scores["adapted"], scores["probe"], datasets, draws=settings.evaluate.draws, seed=settings.seed
        )
        for name, datasets in judged.items()
    }


def _metrics(cards: Mapping[str, Scorecard], gain: Estimate) -> dict[str, float]:
    """Flat figures for `dvc metrics` and MLflow."""
    metrics = {f"{name}.{key}": value for name, card in cards.items() for key, value in card.metrics().items()}
    return {
        **metrics,
        "gain.video_auc": gain.value,
        "gain.video_auc_low": gain.low,
        "gain.video_auc_high": gain.high,
    }


def _report_inputs(
    settings: Settings,
    scores: Mapping[str, pd.DataFrame],
    cards: Mapping[str, Scorecard],
    gains: Mapping[str, Estimate],
    shares: pd.DataFrame,
    separated: Separability,
) -> ReportInputs:
    """What the report shows, gathered from this stage and the former ones."""
    training = json.loads((settings.root / "models" / "train.json").read_text())
    client = registry.connect(settings.mlflow)
    gain, method = gains["macro"], settings.adapter.method
    return ReportInputs(
        model=f"{method} on {settings.backbone.name}",
        method=method,
        verdict=f"Mean video AUC on unseen test datasets is {cards['adapted'].video_auc.value:.3f}; the "
        f"frozen-backbone probe reaches {cards['probe'].video_auc.value:.3f} (difference {gain.value:+.3f}, 95 % "
        f"interval {gain.low:+.3f} to {gain.high:+.3f}).",
        scores=scores,
        scorecards=cards,
        differences=gains,
        history=pd.DataFrame(training["history"]),
        masks=training["mask_history"] if method == "masm" and settings.mask.kind != "none" else [],
        steps=training["steps"],
        shares=shares,
        separability=separated,
        trials=pd.read_csv(settings.root / "search" / "trials.csv").drop(columns=["val_auc", "time_total_s"]),
        datasets=_dataset_cards(settings),
        candidates=len(registry.list_versions(client, settings.mlflow.model)) + 1,
        settings={**_shown(settings), "hyperparameters": training["hyperparameters"]},
        versions={
            "masm": __version__,
            **json.loads((settings.root / "models/detector/detector.json").read_text())["versions"],
        },
    )


def _shown(settings: Settings) -> dict[str, Any]:
    """The settings that say what came out; addresses say only where it was made."""
    return settings.model_dump(mode="json", exclude={"mlflow", "ray", "pretrain", "code"})


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
        note=note,
    )


if __name__ == "__main__":
    run_stage(main)
