"""Two models that are promoted at the same moment; as a program one of them.

`python -m tests.registry.contest FOLDER NAME` takes what `prepare` wrote.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from masm import registry
from masm.gate import basis_of, decide
from masm.promotion import Contender, Verdict
from masm.registry import LoggedRun
from masm.settings import Settings, load_settings
from tests.registry.runs import Logged

NAMES = ("better", "best")
PATIENCE = 60  # s


def prepare(folder: Path, name: str, logged: Logged) -> None:
    """Write down a logged run, so that another process can register it."""
    (folder / f"{name}.json").write_text(json.dumps({"run": asdict(logged.run), "tags": logged.tags}))
    logged.contender.scores.to_parquet(folder / f"{name}.parquet")


def compete(settings: Settings, folder: Path, name: str) -> list[str]:
    """Register one of NAMES as soon as both are judged against the same champion; return the reasons it was given."""
    content = json.loads((folder / f"{name}.json").read_text())
    scores = pd.read_parquet(folder / f"{name}.parquet")
    tags, run = content["tags"], LoggedRun(**content["run"])
    client = registry.connect(settings.mlflow)
    reasons: list[str] = []

    def wait_for_the_other(verdict: Verdict) -> None:
        reasons.append(verdict.reason)
        (folder / f"{name}.judged").touch()
        deadline = time.monotonic() + PATIENCE
        while not all((folder / f"{each}.judged").exists() for each in NAMES):
            assert time.monotonic() < deadline, "the other one does not come"
            time.sleep(0.01)

    decide(
        client,
        settings,
        Contender(scores, {}, float("nan"), True),
        basis_of(settings, tags),
        {},
        wait_for_the_other,
        lambda lock, verdict: registry.register(lock, run, tags, verdict, name),
    )
    return reasons


def check_outcome(settings: Settings, folder: Path) -> None:
    """Assert that the best one is champion, and that only one was promoted in place of the first champion."""
    client, model = registry.connect(settings.mlflow), settings.mlflow.model
    rows = registry.list_versions(client, model)
    (champion,) = [row for row in rows if row.aliases == ("champion",)]
    best = json.loads((folder / "best.json").read_text())["run"]["run_id"]
    assert champion.run_id == best
    assert len(rows) == 3
    entries = registry.trail(client, model)
    assert len({entry.over for entry in entries}) == len(entries)  # nobody was replaced twice
    other = next(row for row in rows if row.version != 1 and row is not champion)
    assert other.verdict == ("promoted" if other.version < champion.version else "held")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(json.dumps(compete(load_settings(place / "params.yaml"), place, sys.argv[2])))
