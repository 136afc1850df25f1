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
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console

from masm import registry
from masm.data.faces import CropProfile
from masm.data.findings import confounded_datasets
from masm.data.profile import crop_profile, detector_weights
from masm.data.table import table_shards
from masm.data.versions import digests
from masm.detector import Detector
from masm.errors import UserError
from masm.lineage import code_changes, environment, lineage
from masm.promotion import Verdict, compare, estimate_macro_video_auc
from masm.registry import Dataset, Record
from masm.scoring import score
from masm.serving.packaging import ModelFiles
from masm.settings import Settings
from pipelines import run_stage


@dataclass(frozen=True)
class Results:
    """What the former stages left, read from their files."""

    detector: Path
    files: tuple[Path, ...]
    training: dict[str, Any]
    metrics: dict[str, float]
    scores: pd.DataFrame
    confounded: dict[str, str]


def main(settings: Settings) -> None:
    """Register models/detector and write reports/promotion.json."""
    console = Console(stderr=True)
    results = read_results(settings.root)
    tags = {**lineage(settings, digests(settings)), "backbone.sha256": results.training["backbone_sha256"]}
    client = registry.connect(settings.mlflow)
    with console.status("promote: compare with the champion"):
        champion = registry.champion(client, settings.mlflow.model)
        verdict = judge(client, settings, results, tags, champion)
    with console.status("promote: record the run and its model"):
        run = registry.log_run(make_record(settings, results, tags), model_files(settings, results.detector))
        version = registry.register(client, settings.mlflow.model, run, tags, verdict)
    report = {
        "model": settings.mlflow.model,
        "version": version.version,
        "aliases": version.aliases,
        "run_id": version.run_id,
        **verdict.summary(),
    }
    text = json.dumps(report, indent=2)
    (settings.root / "reports" / "promotion.json").write_text(text + "\n")
    named = f"{settings.mlflow.model} version {version.version} is {', '.join(version.aliases)}"
    console.print(f"{named}: {verdict.reason}", highlight=False)


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
    training, metrics = (json.loads(files[key].read_text()) for key in ("training", "metrics"))
    scores = pd.read_parquet(files["scores"])
    adapted = scores[scores["model"] == "adapted"]
    confounded = confounded_datasets(files["checks"])
    return Results(root / "models" / "detector", tuple(files.values()), training, metrics, adapted, confounded)


def judge(
    client: MlflowClient, settings: Settings, results: Results, tags: dict[str, str], champion: ModelVersion | None
) -> Verdict:
    """Compare a new model's test scores with the champion's, on the same data.

    A dataset whose reals and fakes come from different sources measures these, and is left out.
    """
    tests = settings.with_role("test")
    left_out = {name: results.confounded[name] for name in tests if name in results.confounded}
    deciding = [name for name in tests if name not in left_out]
    return _judge_on(client, settings, deciding, results.scores, tags, champion).without(left_out)


def _judge_on(
    client: MlflowClient,
    settings: Settings,
    tests: list[str],
    scores: pd.DataFrame,
    tags: dict[str, str],
    champion: ModelVersion | None,
) -> Verdict:
    """Compare on these test datasets.

    A champion that was judged on other data, or by other rules, is scored again on the present tables.
    """
    draws, seed = settings.evaluate.draws, settings.seed
    if champion is None:
        figure = estimate_macro_video_auc(scores, tests, draws, seed)
        return Verdict(True, "there is no champion yet to compare with", figure)
    basis = ["protocol.hash", *(f"data.{name}" for name in tests)]
    if all(champion.tags.get(key) == tags[key] for key in basis):
        theirs = registry.champion_scores(champion)
        theirs = theirs[theirs["model"] == "adapted"]
    else:
        with registry.stored_detector(client, champion) as folder:
            detector = Detector.load(folder, merged=True)
        if CropProfile(**detector.card["crop"]) != crop_profile(settings):
            reason = f"champion version {champion.version} was made for other crops: compare them by hand"
            return Verdict(False, reason, estimate_macro_video_auc(scores, tests, draws, seed))
        theirs = score(detector, settings, tests)
    return compare(scores, theirs, tests, f"champion version {champion.version}", draws, seed)


def make_record(settings: Settings, results: Results, tags: dict[str, str]) -> Record:
    """What MLflow keeps of the run."""
    datasets = [
        Dataset(name, settings.datasets[name].role, str(settings.table(name).relative_to(settings.root)), md5)
        for name, md5 in digests(settings).items()
    ]
    texts = {"environment.txt": "\n".join(environment()) + "\n"}
    if changes := code_changes(settings.path(settings.code)):
        texts["uncommitted.diff"] = changes
    found = results.training["hyperparameters"]
    return Record(
        parameters={**settings.model_dump(mode="json"), "hyperparameters": found},
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
