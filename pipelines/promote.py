"""Stage `promote`: record the run, register the model, and let the better one be champion.

A model that is held is a result, too: the stage ends well on either verdict.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from masm import registry
from masm.console import STDERR
from masm.data.findings import confounded_datasets
from masm.data.profile import detector_weights
from masm.data.table import table_shards
from masm.data.versions import digests
from masm.errors import UserError
from masm.files import write_text
from masm.gate import basis_of, decide, latency_of
from masm.lineage import code_changes, environment, is_clean, lineage
from masm.promotion import Contender, Verdict
from masm.registry import Dataset, Record, Version
from masm.report import insert_verdict
from masm.scorecard import ADAPTED
from masm.scores import read_scores
from masm.serving.packaging import ModelFiles
from masm.settings import Settings
from masm.tracking import journal_roots, send_unsent
from masm.tracking.store import address, open_experiment
from pipelines import run_stage


@dataclass(frozen=True)
class Results:
    """What the former stages left, read from their files; `runs` are keys of MLflow runs by stage."""

    detector: Path
    files: tuple[Path, ...]
    training: dict[str, Any]
    metrics: dict[str, float]
    scores: pd.DataFrame
    confounded: dict[str, str]
    report: Path
    runs: dict[str, str]


def main(settings: Settings) -> None:
    """Register models/detector; write reports/promotion.json and decision.html, the report with the verdict."""
    results = read_results(settings.root)
    tags = {**lineage(settings, digests(settings)), "backbone.sha256": results.training["backbone_sha256"]}
    challenger = make_contender(settings, results, tags)
    client = registry.connect(settings.mlflow)
    send_unsent(settings.mlflow, *journal_roots(settings))
    with registry.answering(settings.mlflow):
        tags |= stage_runs(settings, results)
        with STDERR.status("promote: record the run and its model"):
            run = registry.log_run(make_record(settings, results, tags), model_files(settings, results.detector))
        with STDERR.status("promote: compare with the champion"):
            verdict, version = decide(
                client,
                settings,
                challenger,
                basis_of(settings, tags),
                results.confounded,
                lambda verdict: registry.log_decision(client, run.run_id, verdict, decision_page(results, verdict)),
                lambda lock, verdict: registry.register(lock, run, tags, verdict, "pipelines.promote"),
            )
    _write(settings, results, verdict, version)
    named = f"{settings.mlflow.model} version {version.version} is {', '.join(version.aliases)}"
    STDERR.print(f"{named}: {verdict.reason}", highlight=False)


def _write(settings: Settings, results: Results, verdict: Verdict, version: Version) -> None:
    reports = settings.root / "reports"
    write_text(reports / "decision.html", decision_page(results, verdict))
    report = {
        "model": settings.mlflow.model,
        "version": version.version,
        "aliases": version.aliases,
        "run_id": version.run_id,
        **verdict.record(),
    }
    write_text(reports / "promotion.json", json.dumps(report, indent=2) + "\n")


def read_results(root: Path) -> Results:
    """Read what train, search and evaluate wrote.

    Raises:
        UserError: a file is missing.
    """
    names = {
        "training": "models/train.json",
        "search": "search/best.json",
        "metrics": "reports/metrics.json",
        "scores": "reports/scores.parquet",
        "report": "reports/report.html",
        "checks": "reports/checks.json",
        "settings": "params.yaml",  # these two bring it all back: `masm reproduce`
        "lock": "dvc.lock",
    }
    files = {key: root / name for key, name in names.items()}
    for path in (root / "models" / "detector" / "detector.json", *files.values()):
        if not path.is_file():
            raise UserError(f"{path} is missing: `dvc repro promote` runs the stage that makes it.")
    training, search, metrics = (
        json.loads(files[key].read_text(encoding="utf-8")) for key in ("training", "search", "metrics")
    )
    keys = {"search": search.get("study"), "train": training.get("run")}
    runs = {stage: key for stage, key in keys.items() if key}
    adapted = read_scores(files["scores"])[ADAPTED]
    confounded = confounded_datasets(files["checks"])
    detector, report = root / "models" / "detector", files["report"]
    return Results(detector, tuple(files.values()), training, metrics, adapted, confounded, report, runs)


def stage_runs(settings: Settings, results: Results) -> dict[str, str]:
    """Tags that name the MLflow runs of the search and of the training, where MLflow has them."""
    experiment = open_experiment(settings.mlflow)
    found = {f"{stage}_run_id": experiment.find(key) for stage, key in results.runs.items()}
    return {tag: run.info.run_id for tag, run in found.items() if run is not None}


def make_contender(settings: Settings, results: Results, tags: dict[str, str]) -> Contender:
    """The new model as the gate sees it."""
    latency = latency_of(results.detector, settings)
    return Contender(results.scores, results.metrics, latency, is_clean(tags))


def decision_page(results: Results, verdict: Verdict) -> str:
    """The report of the stage `evaluate`, with the verdict in its section "Gate"."""
    return insert_verdict(results.report.read_text(encoding="utf-8"), verdict)


def make_record(settings: Settings, results: Results, tags: dict[str, str]) -> Record:
    """What MLflow keeps of the run."""
    datasets = [
        Dataset(name, settings.datasets[name].role, str(settings.table(name).relative_to(settings.root)), md5)
        for name, md5 in digests(settings).items()
    ]
    texts = {"environment.txt": "\n".join(environment()) + "\n"}
    if changes := code_changes(settings.path(settings.code)):
        texts["uncommitted.diff"] = changes
    parameters = {**settings.model_dump(mode="json"), "hyperparameters": results.training["hyperparameters"]}
    parameters["mlflow"]["tracking_uri"] = address(settings.mlflow)  # that of the environment may hold a password
    return Record(
        parameters=parameters,
        tags=tags,
        metrics=results.metrics,
        history=results.training["history"],
        datasets=datasets,
        files=results.files,
        texts=texts,
    )


def model_files(settings: Settings, detector: Path) -> ModelFiles:
    """The served model's parts; a frame of the first test dataset is its example."""
    shard = table_shards(settings.table(settings.with_role("test")[0]))[0]
    with pq.ParquetFile(shard) as file:
        example = next(file.iter_batches(1, columns=["image"]))["image"][0].as_py()
    return ModelFiles(detector, detector_weights(settings), example)


if __name__ == "__main__":
    run_stage(main)
