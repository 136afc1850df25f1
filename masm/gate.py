"""The gate at work: gather what it asks of two registered models, judge, and let the verdict take effect."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from masm import registry
from masm.console import Progress
from masm.data.faces import CropProfile
from masm.data.findings import confounded_datasets
from masm.data.parts import plan
from masm.data.profile import crop_profile
from masm.data.versions import digests
from masm.decisions import read_decisions
from masm.detector import Detector
from masm.errors import UserError
from masm.evaluation import evaluate, paired_bootstrap
from masm.lineage import is_clean, protocol_hash
from masm.promotion import (
    CALIBRATION_ERROR,
    Champion,
    Comparison,
    Contender,
    Verdict,
    estimate_macro_video_auc,
    judge,
)
from masm.registry import Lock, Version
from masm.report import insert_verdict
from masm.scorecard import ADAPTED
from masm.scores import read_scores
from masm.scoring import crop_latency, on_device, score
from masm.settings import Settings

Basis = dict[str, str | None]
"""What scores must have in common to be compared: the tags of the protocol and of the test datasets' tables."""
ROLLBACK = "rollback"
"""The reason, in the trail, of a promotion that goes back to the former champion."""


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
            return read_scores(path)[ADAPTED]
    named = registry.label(version)
    if basis != present_basis(settings):
        raise UserError(f"{named} was judged on other data, which are not those of this workspace: check them out.")
    detector = Detector.load(folder, merged=True)
    if CropProfile(**detector.card["crop"]) != crop_profile(settings):
        raise UserError(f"{named} was made for other crops than the tables here have: compare the two by hand.")
    tests = settings.with_role("test")
    with Progress() as bar:
        task = bar.add_task(f"score {named} anew", total=sum(len(part.rows) for part in plan(settings, tests)))
        return score(on_device(detector), settings, tests, partial(bar.advance, task))


def contender(
    client: MlflowClient, settings: Settings, version: ModelVersion, basis: Basis, left_out: Mapping[str, str]
) -> Contender:
    """A registered version as the gate sees it; of its metrics those that were recorded on the basis, or anew.

    Raises:
        UserError: files of it are damaged or gone.
    """
    with registry.stored_detector(client, version) as folder:
        scores, latency = _scores_by(folder, settings, version, basis), latency_of(folder, settings)
        card = Detector.load(folder, merged=True).card
    clean = is_clean(version.tags)
    if basis_of(settings, version.tags) != basis:
        found = evaluate(scores, read_decisions(card), draws=1, left_out=left_out)  # its intervals are not asked for
        metrics = {CALIBRATION_ERROR: found.video.calibration_error}
        return Contender(scores, metrics, latency, clean, missing="recorded on other data")
    with registry.recorded(version, "metrics.json") as path:
        return Contender(scores, json.loads(path.read_text(encoding="utf-8")), latency, clean)


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
    return crop_latency(detector, int(detector.card["crop"]["size"]))


def promote_version(
    client: MlflowClient, settings: Settings, version: ModelVersion, by: str, forced: str | None = None
) -> tuple[Verdict, Version]:
    """Run the gate on a registered version, and make it champion if it wins or is forced.

    Args:
        client: of `registry.connect`.
        settings: of the workspace.
        version: of the workspace's model, any but the champion.
        by: the command that does so.
        forced: why the version becomes champion although the gate holds it; goes into the verdict and the trail.

    Raises:
        UserError: it is champion or another model's, or files of it are damaged or gone; that cannot be forced.
    """
    if version.name != settings.mlflow.model:
        raise UserError(
            f"{version.name} is not the model of this workspace, {settings.mlflow.model}: name one of its versions."
        )
    champion = registry.champion(client, settings.mlflow.model)
    _check_not(champion, version)
    basis = common_basis(settings, version, champion)
    left_out = left_out_of(settings, version, basis)
    challenger = contender(client, settings, version, basis, left_out)
    page = registry.report_of(version)

    def noted(verdict: Verdict) -> Verdict:
        if verdict.promoted or forced is None:
            return verdict
        return replace(verdict, reason=f"{verdict.reason}; made champion all the same: {forced}")

    def announce(verdict: Verdict) -> None:
        _check_not(registry.champion(client, settings.mlflow.model), version)  # by another command, meanwhile
        told = noted(verdict)
        registry.log_decision(client, str(version.run_id), told, insert_verdict(page, told))

    def conclude(lock: Lock, verdict: Verdict) -> Version:
        _check_not(registry.champion(client, settings.mlflow.model), version)
        row = registry.settle(lock, str(version.version), noted(verdict), by)
        if verdict.promoted or forced is None:
            return row
        return registry.move(lock, str(version.version), by, f"forced: {forced}")

    return decide(client, settings, challenger, basis, left_out, announce, conclude)


def _check_not(champion: ModelVersion | None, version: ModelVersion) -> None:
    if _number(champion) == str(version.version):
        raise UserError(f"{registry.label(version)} is champion already: name another version.")


def roll_back(client: MlflowClient, settings: Settings, by: str) -> Version:
    """Make the former champion champion again, after its files were checked.

    A rollback that was cut short before, and is settled now, or that another process makes at the same time, is the
    one that was asked for: a second one would bring back what both get rid of.

    Raises:
        UserError: there is none, or files of it are damaged or gone.
    """
    name = settings.mlflow.model
    known = registry.settled(client, name)
    while True:
        with registry.promoting(client, name):  # it may have to wait for, or to settle, what others began
            if (row := _rolled_back(client, name, known)) is not None:
                return row
            version = registry.former_champion(client, name)
        with registry.stored_detector(client, version), registry.promoting(client, name) as lock:
            if registry.former_champion(client, name).version == version.version:
                return registry.move(lock, str(version.version), by, ROLLBACK)


def _rolled_back(client: MlflowClient, name: str, known: int) -> Version | None:
    """The version that a rollback made champion, if one has come after `known` promotions."""
    entries = [entry for entry in registry.trail(client, name)[known:] if entry.reason == ROLLBACK]
    if not entries:
        return None
    rows = {str(row.version): row for row in registry.list_versions(client, name)}
    return rows.get(str(entries[-1].version))


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
