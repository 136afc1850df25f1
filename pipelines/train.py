"""Stage `train`: Ray Train runs the training loop on the best hyper-parameters, then fits the probe beside it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray.train import Checkpoint
from rich.console import Console
from scipy.special import expit

from masm.cluster import connected, discard
from masm.data.frames import Frames, load_frames
from masm.data.profile import crop_profile
from masm.data.versions import fetch_missing, in_checkout, work_name
from masm.decisions import fit_decisions
from masm.detector import Detector
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe, read_best, weights_digest
from masm.objective import ALONE, Place
from masm.probe import fit_probe
from masm.settings import Settings
from masm.training import Trainer, defined, predict
from pipelines import run_stage
from pipelines.workers import Group, Reporter, replicate, run_workers


def main(settings: Settings) -> None:
    """Write models/detector, models/probe and models/train.json; a run that was killed goes on where it was."""
    fetch_data(settings)
    found, weights = read_best(settings), weights_digest(settings)
    sections = (settings.train, settings.adapter, settings.mask, settings.losses)
    name = work_name("train", settings, *sections, weights, asdict(found))
    trainer = make_trainer(settings, found)
    with connected(settings.ray, cpus=settings.train.workers):
        group = Group(name, settings.ray.storage, settings.train.workers, settings.train.max_failures)
        result = run_workers(worker, {"settings": settings, "found": found}, group, "train", trainer.steps)
        with result.checkpoint.as_directory() as folder:
            trainer.load(Path(folder))
    trainer.load_best()
    _write(settings, found, trainer, weights)
    if in_checkout(settings.root):  # what a job leaves in the storage path is all that remains of it
        discard(settings.ray.storage, name)


def fetch_data(settings: Settings) -> None:
    """Bring here what the stage reads, where it is not on this node."""
    fetch_missing(settings.root, ["search", *(f"ingest@{name}" for name in settings.with_role("train"))])


def make_trainer(
    settings: Settings,
    found: Hyperparameters,
    place: Place = ALONE,
    replicate: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module,
) -> Trainer:
    """The trainer of the final run; every worker, and the stage itself, makes the same one."""
    tables = [settings.table(name) for name in settings.with_role("train")]
    frames, validation = load_frames(tables, "train"), load_frames(tables, "val")
    recipe = make_recipe(settings, settings.train, found)
    return Trainer(build_detector(settings, found), recipe, frames, validation, place, replicate)


def worker(config: dict[str, Any]) -> None:
    """One worker of the group: train epoch by epoch, with a checkpoint after each."""
    fetch_data(config["settings"])
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    trainer = make_trainer(config["settings"], config["found"], place, replicate=replicate)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(Path(folder))
    while not trainer.finished:
        line = trainer.run_epoch(Reporter(config["queue"], trainer.epoch) if place.rank == 0 else lambda *_: None)
        with tempfile.TemporaryDirectory() as folder:
            if place.rank == 0:
                trainer.save(Path(folder))
            ray.train.report(line, checkpoint=Checkpoint.from_directory(folder) if place.rank == 0 else None)


def _write(settings: Settings, found: Hyperparameters, trainer: Trainer, weights: str) -> None:
    """The detector and the probe, each with its decisions fitted on validation; `weights` is the digest of the
    backbone's."""
    models = settings.root / "models"
    card = _save(settings, trainer.detector, trainer.validation, models / "detector")
    probe = build_detector(settings, None)
    probe_auc = fit_probe(probe, trainer.frames, trainer.validation, settings.evaluate.batch_size)
    _save(settings, probe, trainer.validation, models / "probe")
    metrics = {
        "val_auc": trainer.best_auc,
        "probe_val_auc": probe_auc,
        "loss": trainer.history[-1]["loss"],
        **{f"{level}_threshold": decision["threshold"] for level, decision in card["decisions"].items()},
        "trainable_parameters": sum(p.numel() for p in trainer.detector.parameters() if p.requires_grad),
    }
    record = {
        "hyperparameters": asdict(found),
        "metrics": metrics,
        "steps": trainer.steps,
        "history": [defined(line) for line in trainer.history],
        "mask_history": trainer.mask_history,
        "backbone_sha256": weights,
    }
    (models / "train.json").write_text(json.dumps(record, indent=1) + "\n")
    Console().print_json(data={"train": metrics})


def _save(settings: Settings, detector: Detector, validation: Frames, folder: Path) -> dict[str, Any]:
    """Write a detector folder, and return its card."""
    logits = predict(detector, validation.images, settings.evaluate.batch_size)
    scores, train = expit(logits.astype(np.float64)), settings.train
    decisions = fit_decisions(
        validation.labels, scores, validation.videos, train.false_positive_rate, train.calibration
    )
    card = {
        "crop": asdict(crop_profile(settings)),
        "decisions": {level: decision.card() for level, decision in decisions.items()},
    }
    detector.save(folder, card)
    return card


if __name__ == "__main__":
    run_stage(main)
