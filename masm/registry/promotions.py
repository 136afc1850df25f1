"""How `champion` moves, so that at no moment anything is half promoted.

Only the alias says which version serves, and MLflow moves it in one call. Before it a version gets everything that
concerns itself, with tag `promoting`, which says that the alias is to follow; after it the former champion is marked
and the promotion is entered into the trail: tags `promotion.TIME` of the registered model. All this happens under the
lock (`masm.registry.lock`), and whoever gets it next first settles what an interrupted process left:

- the alias moved, the trail does not say so, the version has tag `promoting`: the entries are made good;
- likewise, but without the tag: somebody moved the alias in MLflow's UI or by its API, which is equally good, and is
  entered as such;
- tag `promoting` on a version that is not champion: its alias never moved, its verdict becomes `interrupted`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST, ErrorCode

from masm.errors import UserError
from masm.promotion import FIGURES, Verdict
from masm.registry.lock import Lock, given_back, held, new_lock, person
from masm.registry.runs import LoggedRun
from masm.registry.store import CHALLENGER, CHAMPION, PREVIOUS_CHAMPION
from masm.registry.versions import REPORT, Version, aliases_of, describe, list_versions, model_of, versions_of

PROMOTING = "promoting"
TRAIL = "promotion."
ENTRY = re.compile(r"promotion\.\d{4}-.*")
OUTSIDE = "outside (MLflow UI or API)"
CUT_SHORT = "the promotion was cut short before the champion moved: `masm registry promote` judges the version anew"


@dataclass(frozen=True)
class Promotion:
    """An entry of the trail: which version became champion, when, in place of which, by whom and why.

    `version` is None where somebody took the alias away, `over` where there was no champion.
    """

    time: str
    version: str | None
    over: str | None
    by: str
    reason: str


@dataclass(frozen=True)
class Details:
    """All that the registry knows of a version, and of the promotions of its model, the oldest first."""

    model: str
    version: Version
    tags: dict[str, str]
    trail: list[Promotion]


def show(client: MlflowClient, version: ModelVersion) -> Details:
    """What is known of a version."""
    row = describe(version, aliases_of(client, version.name))
    return Details(version.name, row, dict(version.tags), trail(client, version.name))


def trail(client: MlflowClient, name: str) -> list[Promotion]:
    """All promotions of a registered model, the oldest first."""
    model = model_of(client, name)
    return [] if model is None else _entries(model)


def settled(client: MlflowClient, name: str) -> int:
    """How many promotions the trail has, without one that is under way or was cut short in the middle."""
    entries = trail(client, name)  # first: one that ends between the two looks is no former one
    under_way = {str(item.version) for item in versions_of(name) if PROMOTING in item.tags}
    return len(entries) - (bool(entries) and entries[-1].version in under_way)


def _entries(model: RegisteredModel) -> list[Promotion]:
    texts = [value for key, value in model.tags.items() if ENTRY.fullmatch(key)]
    entries = [entry for entry in map(_parsed, texts) if entry is not None]
    return sorted(entries, key=lambda entry: entry.time)


def _parsed(text: str) -> Promotion | None:
    """The entry that a tag holds; None where somebody wrote the tag by hand."""
    try:
        return Promotion(**json.loads(text))
    except (ValueError, TypeError):
        return None


@contextmanager
def promoting(client: MlflowClient, name: str) -> Iterator[Lock]:
    """Hold the lock of a model whose records are in order; waits until it is free."""
    with held(client, name) as lock:
        _put_in_order(lock)
        yield lock


def notice(client: MlflowClient, name: str) -> None:
    """Enter a champion that was set from outside; a single request where there is none.

    It waits for nobody: where a promotion is under way, or we may not write, the next call does it.
    """
    model = model_of(client, name)
    if model is None or _champion_of(model) == _entered(model):
        return
    lock = new_lock(client, name)
    try:
        if lock.take() == lock.token:
            with given_back(lock):
                _put_in_order(lock)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(PERMISSION_DENIED):
            raise


def register(lock: Lock, run: LoggedRun, tags: Mapping[str, str], verdict: Verdict, by: str) -> Version:
    """Register a run's model as the next version and give it its alias.

    Args:
        lock: of `promoting`; the champion is still the one that was judged against.
        run: of `log_run`.
        tags: the lineage; the version has it, the verdict and its figures from its first moment.
        verdict: whether it becomes champion; if not it stays challenger.
        by: the command that does so.
    """
    entry = _planned(lock, by, "gate")
    intent = {PROMOTING: _text(entry)} if verdict.promoted else {}
    known = {**tags, **run.digests, **verdict.tags(), **intent}
    version = str(mlflow.register_model(run.model_uri, lock.model, tags=known).version)
    page = f"#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{REPORT}"
    lock.client.update_model_version(lock.model, version, f"[Report with the gate's verdict]({page})")
    return _conclude(lock, version, entry, verdict.promoted)


def settle(lock: Lock, version: str, verdict: Verdict, by: str) -> Version:
    """Give a version that was judged anew its verdict and its alias.

    Args:
        lock: of `promoting`; the champion is still the one that was judged against.
        version: its number.
        verdict: of the gate.
        by: the command that does so.
    """
    entry = _planned(lock, by, "gate")
    intent = {PROMOTING: _text(entry)} if verdict.promoted else {}
    tags = verdict.tags()
    former = lock.client.get_model_version(lock.model, version).tags
    for key in FIGURES:
        if key in former and key not in tags:  # of a verdict that compared more
            lock.client.delete_model_version_tag(lock.model, version, key)
    _tag(lock, version, {**intent, **tags})
    return _conclude(lock, version, entry, verdict.promoted)


def move(lock: Lock, version: str, by: str, reason: str) -> Version:
    """Make a version champion without a verdict.

    Args:
        lock: of `promoting`.
        version: its number.
        by: the command that does so.
        reason: why.
    """
    entry = _planned(lock, by, reason)
    _tag(lock, version, {PROMOTING: _text(entry)})
    return _conclude(lock, version, entry, True)


def former_champion(client: MlflowClient, name: str) -> ModelVersion:
    """The version that was champion before the present one.

    Raises:
        UserError: there is none.
    """
    present = aliases_of(client, name).get(CHAMPION)
    former = [v for v in versions_of(name) if PREVIOUS_CHAMPION in v.tags and str(v.version) != present]
    if not former:
        raise UserError(f"{name} has no former champion: there is nothing to roll back to.")
    return max(former, key=lambda version: version.tags[PREVIOUS_CHAMPION])


def _planned(lock: Lock, by: str, reason: str) -> Promotion:
    over = aliases_of(lock.client, lock.model).get(CHAMPION)
    return Promotion(_time(trail(lock.client, lock.model)), None, over, f"{person()}, {by}", reason)


def _conclude(lock: Lock, version: str, entry: Promotion, promoted: bool) -> Version:
    """Move the alias that the verdict gives; all before it can be undone, all after it can be made good."""
    lock.check()
    lock.client.set_registered_model_alias(lock.model, CHAMPION if promoted else CHALLENGER, version)
    if promoted:
        _enter(lock, replace(entry, version=version))
    return next(row for row in list_versions(lock.client, lock.model) if str(row.version) == version)


def _enter(lock: Lock, entry: Promotion) -> None:
    """Make the entries of a promotion whose alias has moved; again and again, if it must be."""
    client, name, version = lock.client, lock.model, entry.version
    if entry.over is not None and entry.over != version:
        _mark_former(lock, entry.over, entry.time)
    elif version is not None and aliases_of(client, name).get(CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    if version is not None:
        client.delete_model_version_tag(name, version, PREVIOUS_CHAMPION)
        _tag(lock, version, {"promoted_by": entry.by, "promoted": entry.time, "promoted_because": entry.reason})
    client.set_registered_model_tag(name, f"{TRAIL}{entry.time}", _text(entry))
    if version is not None:
        client.delete_model_version_tag(name, version, PROMOTING)


def _mark_former(lock: Lock, version: str, time: str) -> None:
    """Mark the version that was champion until now; nothing where somebody has deleted it."""
    try:
        _tag(lock, version, {PREVIOUS_CHAMPION: time})
        lock.client.set_registered_model_alias(lock.model, CHALLENGER, version)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise


def _put_in_order(lock: Lock) -> None:
    """Settle what interrupted processes left, and enter what came from outside."""
    model = model_of(lock.client, lock.model)
    if model is None:
        return
    champion, entered = _champion_of(model), _entered(model)
    intents = {str(item.version): item.tags[PROMOTING] for item in versions_of(model.name) if PROMOTING in item.tags}
    if champion != entered:
        ours = _parsed(intents[champion]) if champion in intents else None
        outside = Promotion(_time(_entries(model)), None, entered, OUTSIDE, "not known")
        _enter(lock, replace(ours or outside, version=champion))
    for version in intents:
        if version != champion:
            _tag(lock, version, {"verdict": "interrupted", "reason": CUT_SHORT})
        lock.client.delete_model_version_tag(lock.model, version, PROMOTING)


def _champion_of(model: RegisteredModel) -> str | None:
    number = model.aliases.get(CHAMPION)
    return None if number is None else str(number)


def _entered(model: RegisteredModel) -> str | None:
    """The champion that the trail names."""
    entries = _entries(model)
    return entries[-1].version if entries else None


def _tag(lock: Lock, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        lock.client.set_model_version_tag(lock.model, version, key, value)


def _text(entry: Promotion) -> str:
    return json.dumps(asdict(entry))


def _time(entries: Sequence[Promotion]) -> str:
    """Now, or just after the last entry where another machine's clock is ahead: times say what came last."""
    now = datetime.now(UTC)
    if entries:
        now = max(now, datetime.fromisoformat(entries[-1].time) + timedelta(microseconds=1))
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
