"""The study: Optuna's record of what was tried, the only one there is, in a database that outlives the search."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from masm.errors import UserError
from masm.search.sampling import make_sampler
from masm.search.space import suggest
from masm.search.trials import OF, own_trials
from masm.settings import UNREADABLE, Role, Settings, fingerprint, secrets_of, study_url, without_secrets
from masm.storage import held

IDENTITY, DATA, FINISHED = "identity", "data", "finished"
SECOND_OBJECTIVE = "search.second_objective"
"""The part of the identity that says what a trial's second value is."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
CONNECT_SECONDS = 15
"""That a database has to answer, before it is said that it does not."""
TABLES_SECONDS = 60
"""That another search may take to make a database's tables."""
KEEPALIVES = {"idle": 30, "interval": 10, "count": 3}
"""Seconds after which, between which, and how often PostgreSQL asks a driver that says nothing whether it lives."""


@dataclass(frozen=True)
class Work:
    """What makes the scores of a study's trials comparable.

    Attributes:
        name: of a study that params.yaml does not name, from settings, data and code.
        identity: each part of the settings and the data that a score depends on.
        data: role -> name of each dataset -> digest of its face table.
    """

    name: str
    identity: Mapping[str, Any]
    data: Mapping[Role, Mapping[str, str]]


def study_storage(settings: Settings) -> RDBStorage:
    """The database of the studies: MASM_STUDY_STORAGE, or `search.study.storage`, or SQLite in `ray.storage`.

    Raises:
        UserError: it cannot be reached, or there is no place for SQLite; a password is never shown.
    """
    given = study_url() or settings.search.study.storage
    if given is None:
        _make_folder(settings.ray.storage)
    url = settings.database(given or settings.study_storage)
    try:
        return _connect(url)
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the study storage {without_secrets(url)} cannot be used ({_reason(error, url)}): start it, or correct "
            "MASM_STUDY_STORAGE or search.study.storage."
        ) from None


def _make_folder(storage: str) -> None:
    """That of work in progress, for SQLite's file."""
    if "://" in storage:
        raise UserError(
            f"ray.storage ({storage}) is no folder, so that the study cannot be a file in it: set MASM_STUDY_STORAGE "
            "or search.study.storage to the SQLAlchemy URL of a database."
        )
    try:
        Path(storage).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"ray.storage ({storage}) cannot be made ({error.strerror}): set it to a folder that can be written."
        ) from None


def _connect(url: str) -> RDBStorage:
    """Two searches that begin at once would make a database's tables twice: one waits for the other."""
    made = make_url(url)
    kind, lasting = made.get_backend_name(), {"pool_pre_ping": True}
    if kind == "sqlite" and made.database is not None:
        with FileLock(f"{made.database}.lock"):
            return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    if kind == "postgresql":
        wait = {"connect_timeout": CONNECT_SECONDS}
        with create_engine(url, connect_args=wait, poolclass=NullPool).begin() as first:  # whose end frees the lock
            first.execute(text(f"SET LOCAL lock_timeout = '{TABLES_SECONDS}s'"))
            first.execute(text("SELECT pg_advisory_xact_lock(hashtext('masm: tables of studies'))"))
            return RDBStorage(url, engine_kwargs={**lasting, "connect_args": wait})
    return RDBStorage(url, engine_kwargs=lasting)


def _reason(error: Exception, url: str) -> str:
    """The innermost error's first line, without the password."""
    if without_secrets(url) == UNREADABLE:
        return "it is no SQLAlchemy URL"
    origin = error.__cause__ or error
    words = str(getattr(origin, "orig", None) or origin).strip().splitlines()
    line = words[0] if words else type(origin).__name__
    for secret in secrets_of(url):
        line = line.replace(secret, "***")
    return line


def study_name(settings: Settings, storage: RDBStorage, work: Work) -> str:
    """That of a search's study: `search.study.name`, or that of the one that was cut short, or of a new one.

    One without a name of its own that has ended is left as it is, and the next gets a number: a search that is forced
    to run again does run again.
    """
    if settings.search.study.name is not None:
        return settings.search.study.name
    ended = {study.study_name for study in optuna.get_all_study_summaries(storage) if FINISHED in study.user_attrs}
    numbered = (f"{work.name}-{number}" for number in count(2))
    return next(name for name in chain([work.name], numbered) if name not in ended)


def open_study(settings: Settings, storage: RDBStorage, work: Work, name: str) -> optuna.Study:
    """The study of `study_name`; it is made where there is none. Its `sole_driver` does this.

    Raises:
        UserError: the study of this name was made with other settings or data, or there is nothing to start from.
    """
    objectives = ["maximize", "minimize"] if settings.search.second_objective else ["maximize"]
    taught = _earlier_trials(storage, name, settings, work)  # first: what is refused leaves no study of this name
    study = optuna.create_study(storage=storage, study_name=name, directions=objectives, load_if_exists=True)
    _check_identity(study, _fingerprints(work))
    study.set_user_attr(DATA, {"train": dict(work.data["train"]), "validate": dict(work.data["validate"])})
    # A search that goes on draws with another seed, or it would draw the points again that it began with.
    study.sampler = make_sampler(settings, settings.seed + len(own_trials(study)))
    shown = [trial.user_attrs[OF] for trial in study.get_trials(deepcopy=False) if OF in trial.user_attrs]
    study.add_trials([trial for trial in taught if trial.user_attrs[OF] not in shown])
    return study


@contextmanager
def sole_driver(study: str, storage: RDBStorage) -> Iterator[None]:
    """Keep other stages off the study of a name: by a lock on a file beside SQLite's, or by one that PostgreSQL holds.

    One that dies lets go of it. Of a study in another database stages do not know of each other.

    Raises:
        UserError: another one runs it.
    """
    url = storage.engine.url
    lock: AbstractContextManager[None]
    if url.get_backend_name() == "postgresql":
        lock = _server_lock(storage.engine, study)
    elif url.get_backend_name() == "sqlite" and url.database:
        lock = held(f"{url.database}.{study}.lock", _driven(study))
    else:
        lock = nullcontext()
    with lock:
        yield


@contextmanager
def _server_lock(engine: Engine, study: str) -> Iterator[None]:
    """The server lets go of it when this connection ends; of a machine that is gone it notices that in a minute."""
    with ExitStack() as ends:
        try:
            connection = ends.enter_context(engine.connect())
            connection.detach()  # it does not go back to the others, with the lock
            for option, value in KEEPALIVES.items():
                connection.execute(text(f"SET tcp_keepalives_{option} = {value}"))
            free = connection.scalar(text("SELECT pg_try_advisory_lock(hashtext(:study))"), {"study": study})
            connection.commit()
        except SQLAlchemyError as error:
            raise StorageInternalError(str(error)) from error  # as Optuna says it
        if not free:
            raise UserError(_driven(study))
        yield


def _driven(study: str) -> str:
    return f"another stage runs the study {study}: wait for its end, or set another search.study.name."


def _fingerprints(work: Work) -> dict[str, str]:
    return {part: fingerprint(value) for part, value in work.identity.items()}


def _check_identity(study: optuna.Study, present: Mapping[str, str]) -> None:
    """Write down what a new study's scores depend on, and hold an old one to it."""
    name = study.study_name
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        if study.get_trials(deepcopy=False):
            raise UserError(f"the study {name} is not masm's: set another search.study.name.")
        study.set_user_attr(IDENTITY, present)
        return
    if differing := sorted(part for part in present if present[part] != known.get(part)):
        raise UserError(
            f"the study {name} was made with other {' and '.join(differing)}, so that its scores are not comparable: "
            f"set another search.study.name (and `warm_start: {name}`, to learn from it), or the former values again."
        )


def _earlier_trials(storage: RDBStorage, own: str, settings: Settings, work: Work) -> list[FrozenTrial]:
    """The trials of `search.warm_start` that lie in the space, for the sampler of the study `own` to learn from."""
    name = settings.search.warm_start
    if name is None:
        return []
    known = [other for other in optuna.get_all_study_names(storage) if other != own]
    if name not in known:
        raise UserError(f"search.warm_start: the storage has no study {name}; it has {', '.join(known) or 'none'}.")
    former = optuna.load_study(study_name=name, storage=storage)
    _check_data(former, work)
    if former.user_attrs[IDENTITY].get(SECOND_OBJECTIVE) != _fingerprints(work).get(SECOND_OBJECTIVE):
        raise UserError(
            f"search.warm_start: the study {name} has other objectives: set search.second_objective as it was there, "
            "or name another study."
        )
    ended = former.get_trials(deepcopy=False, states=ENDED)
    inside = [moved for trial in ended if (moved := _moved(trial, name, settings)) is not None]
    if not inside:
        raise UserError(
            f"search.warm_start: none of the {len(ended)} trials of {name} lies in search.space: widen it, or take "
            "warm_start out."
        )
    return inside


def _check_data(former: optuna.Study, work: Work) -> None:
    """Hold an earlier study to what a search may know: scores on the present `validate` data, nothing of test data."""
    name, data = former.study_name, former.user_attrs.get(DATA)
    if data is None:
        raise UserError(f"search.warm_start: the study {name} does not say on which data it was scored: name another.")
    scored, tests = data["validate"], work.data["test"]
    used = {**data["train"], **scored}
    if seen := sorted(dataset for dataset in used if dataset in tests or used[dataset] in tests.values()):
        raise UserError(
            f"search.warm_start: the study {name} was trained or scored on {', '.join(seen)}, which is test data now; "
            "the search must not learn from it: name another study, or take warm_start out."
        )
    if sorted(scored.values()) != sorted(work.data["validate"].values()):
        raise UserError(
            f"search.warm_start: the study {name} was scored on other data ({', '.join(scored)}) than the validate "
            "datasets have now, so that its scores are not comparable: name another study, or take warm_start out."
        )


def _moved(trial: FrozenTrial, name: str, settings: Settings) -> FrozenTrial | None:
    """The trial as one of the present space; None where its point is none of that."""
    fixed = FixedTrial(trial.params)
    try:
        with warnings.catch_warnings(action="error"):  # of a value outside of its range
            point = suggest(fixed, settings.search.space, settings.searched)
    except (ValueError, Warning):
        return None
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params=point,
        distributions=fixed.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={OF: [name, trial.number]},
    )


def finish_study(study: optuna.Study) -> None:
    """Say that the results of the search are written, so that the next one without a name begins anew."""
    study.set_user_attr(FINISHED, True)
