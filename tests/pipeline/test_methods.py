"""Other methods than masm through the same stages: one setting switches."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from masm.backbones import STARTER
from masm.detector import Detector
from masm.settings import load_settings
from tests.pipeline.workspace import edit, make_workspace, run

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BIN = Path(sys.executable).parent


FEW = {
    "swap": {"role": "train", "camera": "compact", "forgeries": ["swap"]},
    "selfblend": {"role": "validate", "camera": "compact", "forgeries": ["selfblend"]},
    "upsample": {"role": "test", "camera": "compact", "forgeries": ["upsample"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which nothing has run yet; the methods share its face tables."""
    changes = {"datasets": FEW, "evaluate.share_frames": 3, "train.epochs": 1, "train.workers": 1}
    return make_workspace(tmp_path_factory.mktemp("methods") / "workspace", changes)


MARGIN = {"type": "uniform", "lower": 0.1, "upper": 0.4}
ON = {
    "losses": {"triplet": "batch_all", "triplet_weight": 0.5, "attribution": "method"},
    "search.space.margin": MARGIN,
}
OFF = {"losses": {}, "search.space.margin": None}


@pytest.mark.parametrize(("number", "method", "losses"), [(1, "lora", ON), (2, "effort", OFF)])
def test_a_method_is_searched_trained_judged_and_registered(
    folder: Path, number: int, method: str, losses: dict[str, Any]
) -> None:
    edit(folder / "params.yaml", {"adapter.method": method, **losses})
    clean = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    environment = {**clean, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
    done = run(str(BIN / "dvc"), "repro", folder=folder, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    trials = pd.read_csv(folder / "search" / "trials.csv")
    assert len(trials) == (2 if method == "lora" else 1)
    searched = [name for name in trials if name not in ("trial", "state", "epochs", "score", "seconds")]
    assert (
        searched == load_settings(folder / "params.yaml").searched == (["rank", "margin"] if method == "lora" else [])
    )
    training = json.loads((folder / "models" / "train.json").read_text())
    starter = (STARTER / "model.safetensors").read_bytes()
    assert training["backbone_sha256"] == hashlib.sha256(starter).hexdigest()
    found = training["hyperparameters"]
    assert found["margin"] == pytest.approx(trials.loc[trials["score"].idxmax(), "margin"] if method == "lora" else 0)
    assert (found["triplet_weight"], found["attribution_weight"]) == ((0.5, 1.0) if method == "lora" else (0, 0))
    assert Detector.load(folder / "models" / "detector").adapter.method == method
    metrics = json.loads((folder / "reports" / "metrics.json").read_text())
    assert 0 <= metrics["adapted.macro.video_auc"] <= 1
    shares = {name: value for name, value in metrics.items() if ".share_" in name}
    assert all(-1 <= value <= 1 for value in shares.values())
    assert len(shares) == (2 if method == "effort" else 0)
    assert f"{method} on starter" in (folder / "reports" / "report.html").read_text()
    assert json.loads((folder / "reports" / "promotion.json").read_text())["version"] == number
