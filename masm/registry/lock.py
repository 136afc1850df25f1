"""One promotion at a time, wherever the processes run: a lock that lies in the registry itself.

MLflow has no compare-and-set, but no two registered models have one name. Whoever creates `NAME.promoting` holds the
lock, and deletes it in the end. The processes may be on different machines, whose clocks differ; so a holder counts
as dead when a waiting process has seen the same one PATIENCE times, about a second apart. It then renames the lock to
a name made of the dead holder's token: as there can be one of that name only, only one process can do so, and none
takes away the lock of the next holder. A holder that was only slow finds this out in `Lock.check` before it moves an
alias.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode

from masm.errors import UserError
from masm.tracking.store import NO_ANSWER

PATIENCE = 60  # looks at the same holder, of about a second each, after which it counts as dead
INTERVAL = 1.0  # s
HOLDER = "holder"  # tag
NOBODY = "nobody"  # holds a lock that somebody made by hand; it counts as a dead one's
TAKEN = tuple(map(ErrorCode.Name, (RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST)))
"""What MLflow says where another process was first, also where that one has given the lock back since."""


@dataclass(frozen=True)
class Lock:
    """The right to change the aliases of a registered model."""

    client: MlflowClient
    model: str
    token: str

    @property
    def name(self) -> str:
        """The registered model that stands for the lock."""
        return f"{self.model}.promoting"

    def check(self) -> None:
        """Raise UserError where another process took this one for dead and holds the lock now."""
        if self._holder() != self.token:
            raise UserError(
                f"This process took so long that another one promotes {self.model} now: nothing was changed; run it "
                "again."
            )

    def take(self) -> str | None:
        """Try to get the lock; return whose it is, or None where it was given back at this moment."""
        by = {HOLDER: self.token, "user": person(), "process": str(os.getpid())}
        try:
            self.client.create_registered_model(self.name, by, "Held for as long as a version is being promoted.")
        except MlflowException as error:
            if error.error_code not in TAKEN:
                raise
            return self._holder()  # ourselves, where the answer to a first attempt was lost
        return self.token

    def give_back(self) -> None:
        """Remove the lock, and what is left of those that were broken.

        Where the store fails at this, the work is done all the same, and the lock counts as a dead holder's.
        """
        with suppress(MlflowException):
            if self._holder() == self.token:
                self.client.delete_registered_model(self.name)
            for broken in self.client.search_registered_models(f"name LIKE '{self.name}.%'"):
                self.client.delete_registered_model(broken.name)

    def break_of(self, holder: str) -> None:
        """Take the lock from a dead holder; in vain where another process is faster."""
        try:
            if self._holder() == holder:
                self.client.rename_registered_model(self.name, f"{self.name}.{holder}")
        except MlflowException as error:
            if error.error_code not in TAKEN:
                raise

    def _holder(self) -> str | None:
        try:
            return self.client.get_registered_model(self.name).tags.get(HOLDER, NOBODY)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return None


def new_lock(client: MlflowClient, model: str) -> Lock:
    """A lock that is not taken yet."""
    return Lock(client, model, uuid.uuid4().hex)


def acquire(client: MlflowClient, model: str) -> Lock:
    """The lock of a model, as soon as it is free or its holder counts as dead.

    Raises:
        MlflowException: the store does not answer, or we may not write to it.
    """
    lock = new_lock(client, model)
    seen, looks = None, 0
    while (holder := lock.take()) != lock.token:
        looks = looks + 1 if holder == seen else 0
        seen = holder
        if holder is not None and looks >= PATIENCE:
            lock.break_of(holder)
        time.sleep(INTERVAL)
    return lock


@contextmanager
def held(client: MlflowClient, model: str) -> Iterator[Lock]:
    """Hold a model's lock; waits until it is free."""
    with given_back(acquire(client, model)) as lock:
        yield lock


@contextmanager
def given_back(lock: Lock) -> Iterator[Lock]:
    """Give a lock that was taken back in the end.

    A store that does not answer takes nothing back, and would keep us waiting: the lock counts as a dead one's later.
    """
    try:
        yield lock
    except BaseException as error:
        if not (isinstance(error, MlflowException) and error.error_code in NO_ANSWER):
            lock.give_back()
        raise
    lock.give_back()


def person() -> str:
    """Who runs this process, and where, for the records."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
