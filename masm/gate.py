"""The gate at work: gather what it asks of two registered models, judge, and let the verdict take effect."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from masm import registry
from masm.data.faces import CropProfile
from masm.data.findings import confounded_datasets
from masm.data.profile import crop_profile
from masm.data.versions import digests
from masm.detector import Detector
from masm.errors import UserError
from masm.evaluation import paired_bootstrap
from masm.lineage import protocol_hash
from masm.promotion import Champion, Comparison, Contender, Verdict, estimate_macro_video_auc, judge
from masm.registry import Lock, Version
from masm.scores import read_scores
from masm.scoring import probabilities, score
from masm.settings import Settings

Basis = dict[str, str | None]
"""What scores must have in common to be compared: the tags of the protocol and of the test datasets' tables."""
MODEL = "adapted"  # in scores.parquet, whose other rows are the probe's
TIMED = 20  # crops of which the latency is the median


def decide(
    client: MlflowClient,
    settings: Settings,
    challenger: Contender,
    basis: Basis,
    left_out: Mapping[str, str],
    announce: Callable[[Verdict], None],
    conclude: Callable[[Lock, Verdict], Version],
) -> tuple[Verdict, Version]:
    """Judge a model against the champion, and again where another one became champion meanwhile.

    Judging may take long, so that it is done without the lock; only a verdict on the present champion takes effect.

    Args:
        client: of `registry.connect`.
        settings: test datasets, gate, bootstrap.
        challenger: the model.
        basis: of its scores.
        left_out: test datasets that cannot decide -> why.
        announce: is given each verdict before it takes effect.
        conclude: lets the last one take effect, under the lock.
    """
    name = settings.mlflow.model
    while True:
        champion = registry.champion(client, name)
        verdict = judge_against(client, settings, challenger, basis, left_out, champion)
        announce(verdict)
        with registry.promoting(client, name) as lock:
            if _number(registry.champion(client, name)) == _number(champion):
                return verdict, conclude(lock, verdict)


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def judge_against(
    client: MlflowClient,
    settings: Settings,
    challenger: Contender,
    basis: Basis,
    left_out: Mapping[str, str],
    champion: ModelVersion | None,
) -> Verdict:
    """The gate's verdict on a model; one that cannot be compared with the champion is held.

    A dataset whose reals and fakes come from different sources measures these, and does not decide.
    """
    tests = settings.with_role("test")
    deciding = [name for name in tests if name not in left_out]
    draws, seed = settings.evaluate.draws, settings.seed
    rival = None
    if champion is not None:
        try:
            rival = Champion(f"champion version {champion.version}", scores_of(client, settings, champion, basis))
        except UserError as error:
            own = estimate_macro_video_auc(challenger.scores, deciding, draws, seed)
            return Verdict(False, f"not compared: {error}", own)
    left = {name: left_out[name] for name in tests if name in left_out}
    return judge(settings.gate, challenger, rival, deciding, draws, seed).without(left)


def basis_of(settings: Settings, tags: Mapping[str, str]) -> Basis:
    """What the scores of a model with these tags are of."""
    return {key: tags.get(key) for key in ("protocol.hash", *(f"data.{name}" for name in settings.with_role("test")))}


def present_basis(settings: Settings) -> Basis:
    """What scores would be of that were made now."""
    tables = {f"data.{name}": digest for name, digest in digests(settings).items()}
    return basis_of(settings, {"protocol.hash": protocol_hash(settings), **tables})


def common_basis(settings: Settings, a: ModelVersion, b: ModelVersion | None) -> Basis:
    """What two models are compared on: what both have recorded scores of, or the workspace's present data."""
    recorded = basis_of(settings, a.tags)
    if None not in recorded.values() and (b is None or basis_of(settings, b.tags) == recorded):
        return recorded
    return present_basis(settings)


def scores_of(client: MlflowClient, settings: Settings, version: ModelVersion, basis: Basis) -> pd.DataFrame:
    """A version's scores of the test datasets: the recorded ones, or anew where these are of something else.

    The model's files are checked in either case.

    Raises:
        UserError: files of it are damaged or gone, or it cannot be scored on what the basis says.
    """
    with registry.stored_detector(client, version) as folder:
        return _scores_by(folder, settings, version, basis)


def _scores_by(folder: Path, settings: Settings, version: ModelVersion, basis: Basis) -> pd.DataFrame:
    if basis_of(settings, version.tags) == basis:
        with registry.recorded(version, "scores.parquet") as path:
            return read_scores(path)[MODEL]
    named = f"{version.name} version {version.version}"
    if basis != present_basis(settings):
        raise UserError(f"{named} was judged on other data, which are not those of this workspace: check them out.")
    detector = Detector.load(folder, merged=True)
    if CropProfile(**detector.card["crop"]) != crop_profile(settings):
        raise UserError(f"{named} was made for other crops than the tables here have: compare the two by hand.")
    return score(detector, settings, settings.with_role("test"))


def contender(client: MlflowClient, settings: Settings, version: ModelVersion, basis: Basis) -> Contender:
    """A registered version as the gate sees it.

    Raises:
        UserError: files of it are damaged or gone.
    """
    with registry.stored_detector(client, version) as folder:
        scores, latency = _scores_by(folder, settings, version, basis), latency_of(folder, settings)
    with registry.recorded(version, "metrics.json") as path:
        metrics = json.loads(path.read_text())
    return Contender(scores, metrics, latency, version.tags.get("git.dirty") == "false")


def left_out_of(settings: Settings, version: ModelVersion, basis: Basis) -> dict[str, str]:
    """Datasets that cannot decide -> why: as the version's run found, or the workspace where its scores are not used.

    Raises:
        UserError: the findings are gone.
    """
    if basis_of(settings, version.tags) == basis:
        with registry.recorded(version, "checks.json") as path:
            return confounded_datasets(path)
    path = settings.root / "reports" / "checks.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: `dvc repro validate` makes it.")
    return confounded_datasets(path)


def latency_of(folder: Path, settings: Settings) -> float:
    """Milliseconds of a merged detector for one crop, the median of some; NaN where the gate does not ask for it."""
    if settings.gate.max_latency_ms is None:
        return float("nan")
    detector = Detector.load(folder, merged=True)
    size = int(detector.card["crop"]["size"])
    crop = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    probabilities(detector, crop)  # the first one warms up
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        probabilities(detector, crop)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


def promote_version(
    client: MlflowClient, settings: Settings, version: ModelVersion, by: str, forced: str | None = None
) -> tuple[Verdict, Version]:
    """Run the gate on a registered version, and make it champion if it wins or is forced.

    Args:
        client: of `registry.connect`.
        settings: of the workspace.
        version: any but the champion.
        by: the command that does so.
        forced: why the version becomes champion although the gate holds it; goes into the trail.

    Raises:
        UserError: it is champion, or files of it are damaged or gone; that cannot be forced.
    """
    champion = registry.champion(client, settings.mlflow.model)
    _check_not(champion, version)
    basis = common_basis(settings, version, champion)
    challenger = contender(client, settings, version, basis)

    def conclude(lock: Lock, verdict: Verdict) -> Version:
        _check_not(registry.champion(client, settings.mlflow.model), version)
        row = registry.settle(lock, str(version.version), verdict, by)
        if verdict.promoted or forced is None:
            return row
        return registry.move(lock, str(version.version), by, f"forced: {forced}")

    left_out = left_out_of(settings, version, basis)
    return decide(client, settings, challenger, basis, left_out, lambda verdict: None, conclude)


def _check_not(champion: ModelVersion | None, version: ModelVersion) -> None:
    if _number(champion) == str(version.version):
        raise UserError(f"{version.name} version {version.version} is champion already: name another version.")


def roll_back(client: MlflowClient, settings: Settings, by: str) -> Version:
    """Make the former champion champion again, after its files were checked.

    Raises:
        UserError: there is none, or files of it are damaged or gone.
    """
    name = settings.mlflow.model
    while True:
        registry.notice(client, name)
        version = registry.former_champion(client, name)
        with registry.stored_detector(client, version), registry.promoting(client, name) as lock:
            if registry.former_champion(client, name).version == version.version:
                return registry.move(lock, str(version.version), by, "rollback")


def compare_versions(client: MlflowClient, settings: Settings, a: ModelVersion, b: ModelVersion) -> list[Comparison]:
    """Two versions on each test dataset and in the mean ("macro"), on recorded scores or, where these differ, anew.

    Raises:
        UserError: files of one are damaged or gone, or they cannot be scored on the same frames.
    """
    basis = common_basis(settings, a, b)
    scores_a, scores_b = (scores_of(client, settings, version, basis) for version in (a, b))
    left_out = left_out_of(settings, a, basis)
    tests = settings.with_role("test")
    parts = {name: [name] for name in tests} | {"macro": [name for name in tests if name not in left_out]}
    draws, seed = settings.evaluate.draws, settings.seed
    return [
        Comparison(
            dataset=name,
            a=estimate_macro_video_auc(scores_a, datasets, draws, seed),
            b=estimate_macro_video_auc(scores_b, datasets, draws, seed),
            difference=paired_bootstrap(scores_a, scores_b, datasets, draws=draws, seed=seed),
            decides=name not in left_out,
        )
        for name, datasets in parts.items()
    ]
