"""Logged runs to register, and names of their own for the models that tests register them under."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from uuid import uuid4

import pandas as pd
from mlflow import MlflowClient
from scipy.special import expit, logit

from masm import registry
from masm.data.versions import digests
from masm.lineage import lineage
from masm.promotion import Contender, Verdict
from masm.registry import LoggedRun, Version
from masm.scorecard import Estimate
from masm.settings import Settings
from pipelines import promote
from tests.serving.workspace import use_scores


@dataclass(frozen=True)
class Logged:
    """A run with a model and these scores, which `decide` can register any number of times."""

    run: LoggedRun
    tags: dict[str, str]
    contender: Contender


def shifted(scores: pd.DataFrame, by: float) -> pd.DataFrame:
    """The same scores, with the fakes' logits moved up (better) or down (worse)."""
    return scores.assign(score=expit(logit(scores["score"]) + by * scores["label"]))


def contestants(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Two sets of scores: perfect on one dataset, and on all."""
    first = str(scores["dataset"].iloc[0])
    parts = [shifted(part, 20 * (name == first)) for name, part in scores.groupby("dataset", sort=False)]
    return {"better": pd.concat(parts, ignore_index=True), "best": shifted(scores, 20)}


def log(settings: Settings, scores: pd.DataFrame) -> Logged:
    """Record the workspace's detector with these scores, as the stage `promote` does."""
    use_scores(settings, scores)
    results = promote.read_results(settings.root)
    tags = lineage(settings, digests(settings))
    registry.connect(settings.mlflow)
    record, files = promote.make_record(settings, results, tags), promote.model_files(settings, results.detector)
    return Logged(registry.log_run(record, files), tags, promote.make_contender(settings, results, tags))


def own_model(settings: Settings) -> Settings:
    """The same settings with a registered model that nobody else uses."""
    return settings.model_copy(update={"mlflow": settings.mlflow.model_copy(update={"model": uuid4().hex[:8]})})


def register(client: MlflowClient, settings: Settings, logged: Logged, promoted: bool) -> Version:
    """Register a logged run with a verdict that is given."""
    verdict = Verdict(promoted, "said by the test", Estimate(0.5, 0.4, 0.6))
    with registry.promoting(client, settings.mlflow.model) as lock:
        return registry.register(lock, logged.run, logged.tags, verdict, "test")


def aliases(client: MlflowClient, settings: Settings) -> dict[int, tuple[str, ...]]:
    """The aliases of each version."""
    return {row.version: row.aliases for row in registry.list_versions(client, settings.mlflow.model)}


def check_whole(client: MlflowClient, settings: Settings) -> None:
    """Assert that what the registry says of its champions is consistent."""
    name = settings.mlflow.model
    model, rows = client.get_registered_model(name), registry.list_versions(client, name)
    entries = registry.trail(client, name)
    champions = [row for row in rows if "champion" in row.aliases]
    assert [str(row.version) for row in champions] == [entry.version for entry in entries[-1:]]
    for before, after in pairwise(entries):
        assert after.over == before.version
        assert after.time > before.time
    tags = {row.version: client.get_model_version(name, str(row.version)).tags for row in rows}
    assert not [version for version, known in tags.items() if "promoting" in known]
    assert not [row.version for row in champions if "previous_champion" in tags[row.version]]
    former = {int(entry.over) for entry in entries if entry.over} - {row.version for row in champions}
    assert {version for version, known in tags.items() if "previous_champion" in known} == former
    for row in rows:
        if row.verdict == "promoted":
            assert str(row.version) in {entry.version for entry in entries}
    assert not client.search_registered_models(f"name LIKE '{model.name}.%'")
