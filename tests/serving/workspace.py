"""A small workspace as the stages before `promote` leave it, with a real detector on random crops."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import yaml

from masm.adapters import AdapterSettings
from masm.backbones import Backbone, build_backbone
from masm.data.faces import CropProfile
from masm.data.findings import Finding, write_findings
from masm.data.table import SCHEMA, SCHEMA_VERSION, write_table
from masm.decisions import Decision, Isotonic, Level, Temperature
from masm.detector import Detector
from masm.scoring import score
from masm.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
PROFILE = CropProfile("given", SIZE, 1.3, None, frames=32)
TESTS = ("upsample", "denoise")
DECISIONS: dict[Level, Decision] = {
    "frame": Decision(0.5, Temperature(2.0, 0.25)),
    "video": Decision(0.45, Isotonic((0.2, 0.4, 0.6), (0.1, 0.3, 0.9))),
}


@contextmanager
def own_address() -> Iterator[None]:
    """Keep MLflow's address, which it leaves in the environment and so before params.yaml, from other tests."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def tiny_detector(seed: int) -> Detector:
    """An adapted vision transformer of width 32 and depth 2, with random weights."""
    arguments = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_backbone("vit_tiny_patch16_224", arguments)
    backbone = Backbone(model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "vit_tiny_patch16_224", arguments)
    return Detector.build(backbone, AdapterSettings("masm", 2, 2, "interleaved", ("q", "v")), seed)


def moved_detector(seed: int) -> Detector:
    """`tiny_detector`, each of whose artifact subspaces has moved, as in training."""
    detector = tiny_detector(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in detector.layers.values():
            for factors in layer.pieces():
                factors += 0.1 * torch.randn(factors.shape, generator=generator)
    return detector


def save(detector: Detector, folder: Path, profile: CropProfile = PROFILE) -> None:
    """Write the detector folder as the stage `train` does."""
    decisions = {level: decision.card() for level, decision in DECISIONS.items()}
    detector.save(folder, {"crop": asdict(profile), "decisions": decisions})


def random_crop(*key: int) -> bytes:
    """A PNG of noise."""
    noise = np.random.default_rng(key).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def make_workspace(root: Path, store: Path) -> Settings:
    """A workspace with face tables of noise, dvc.lock and the former stages' outputs.

    `store` is MLflow's SQLite file. Its model and experiment have the name of the workspace's parent folder, so
    that tests share the file, which takes seconds to make, and nothing in it.
    """
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["code"] = str(ROOT)
    tree["datasets"] = {name: tree["datasets"][name] for name in ("swap", "selfblend", *TESTS)}
    tree["crop"] |= {"size": SIZE, "margin": PROFILE.margin}
    tree["evaluate"] |= {"draws": 200}
    tree["gate"] |= {"floors": {"default": None}, "max_drop": None}  # random detectors on noise
    name = root.parent.name
    tree["mlflow"] |= {"tracking_uri": f"sqlite:///{store}", "experiment": name, "model": name}
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    settings = load_settings(root / "params.yaml")
    for number, name in enumerate(TESTS):
        write_table(settings.table(name), [_row(name, number, video) for video in range(24)], [])
    lock_data(root, dict.fromkeys(settings.datasets, "0" * 32))
    _write_outputs(root)
    use_detector(settings, tiny_detector(0))
    return settings


def _row(dataset: str, number: int, video: int) -> dict[str, object]:
    label = video % 2
    return dict.fromkeys(SCHEMA.names) | {
        "sample_id": f"{dataset}/{video}",
        "dataset": dataset,
        "split": "test",
        "label": label,
        "method": dataset if label else "real",
        "video_id": f"v{video}",
        "frame_index": 0,
        "identity": f"p{video}",
        "bbox": [0.0, 0.0, 40.0 + video, 30.0],
        "image": random_crop(number, video),
        "profile": PROFILE.hash,
        "schema_version": SCHEMA_VERSION,
    }


def _write_outputs(root: Path) -> None:
    for folder in ("models", "search", "reports"):
        (root / folder).mkdir()
    history = [
        {"epoch": epoch, "loss": 0.7, "val_auc": auc, "val_auc.swap": auc, "val_auc.reals": None}
        for epoch, auc in ((1, 0.6), (2, 0.8))
    ]
    found = {"hyperparameters": {"rank": 2}}
    training = {"history": history, "backbone_sha256": "b" * 64, "run": f"train-{root.parent.name}", **found}
    (root / "models" / "train.json").write_text(json.dumps(training))
    (root / "search" / "best.json").write_text(json.dumps({"study": f"search-{root.parent.name}", **found}))
    (root / "reports" / "metrics.json").write_text(json.dumps({"adapted.macro.video_auc": 0.75}))
    (root / "reports" / "report.html").write_text("<p>report</p><!-- gate --><!-- /gate -->")
    use_findings(root, {})


def use_findings(root: Path, confounded: dict[str, str]) -> None:
    """Write checks.json as the stage `validate` does, with these datasets and the signs found in them."""
    findings = [Finding("confounding", "warning", dataset, sign) for dataset, sign in confounded.items()]
    write_findings(root / "reports" / "checks.json", TESTS, findings)


def lock_data(root: Path, digests: dict[str, str]) -> None:
    """Write dvc.lock with these digests of the face tables."""
    outs = {name: [{"path": f"data/{name}", "md5": md5}] for name, md5 in digests.items()}
    stages = {f"ingest@{name}": {"outs": out} for name, out in outs.items()}
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def use_detector(settings: Settings, detector: Detector) -> pd.DataFrame:
    """Put a detector, and its own scores, where the stages `train` and `evaluate` do; return the scores."""
    save(detector, settings.root / "models" / "detector")
    loaded = Detector.load(settings.root / "models" / "detector", merged=True)
    scores = score(loaded, settings, TESTS)
    use_scores(settings, scores)
    return scores


def use_scores(settings: Settings, scores: pd.DataFrame) -> None:
    """Write the scores as `evaluate` does: the probe's are there too, and must not be taken for these."""
    probe = scores.assign(score=0.5, model="probe")
    both = pd.concat([probe, scores.assign(model="adapted")], ignore_index=True)
    both.to_parquet(settings.root / "reports" / "scores.parquet", index=False)
