"""What the stage `search` left, for those who show it."""

from __future__ import annotations

import json

import pandas as pd

from masm.plots.search import Outcome
from masm.search.importance import importance
from masm.settings import Settings


def read_outcome(settings: Settings) -> Outcome:
    """Read search/: best.json, trials.csv and epochs.csv."""
    folder, names, space = settings.root / "search", settings.searched, settings.search.space
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    second = best.get("second_objective", {"name": "", "tolerance": 0.0})
    trials = pd.read_csv(folder / "trials.csv")
    return Outcome(
        trials=trials,
        epochs=pd.read_csv(folder / "epochs.csv"),
        ranges={name: space.bounds(name).type for name in names},
        chosen=best["trial"],
        second=second["name"],
        tolerance=second["tolerance"],
        front=best.get("front", ()),
        importance=importance(trials, space, names),
    )
