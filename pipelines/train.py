"""Stage `train`: Ray Train runs the training loop on the best hyper-parameters, then fits the probe beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from rich.console import Console
from scipy.special import expit

from masm.cluster import connected
from masm.data.frames import Frames, load_frames
from masm.data.profile import crop_profile
from masm.data.versions import digests, fetch_missing, in_checkout, work_name
from masm.decisions import fit_decisions
from masm.detector import Detector
from masm.drift import make_reference, write_reference
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe, read_best, weights_digest
from masm.lineage import lineage
from masm.objective import ALONE, Place
from masm.probe import fit_probe
from masm.settings import Settings
from masm.tracking import Recorder, stage_recorder
from masm.training import Trainer
from masm.validation import defined, predict
from pipelines import run_stage
from pipelines.shared_images import share, shared
from pipelines.workers import Group, Reporter, discard_run, load_last, replicate, report, run_workers, sole_driver


def main(settings: Settings) -> None:
    """Write models/detector, models/probe and models/train.json; a run that was killed goes on where it was."""
    fetch_data(settings)
    found, weights = read_best(settings), weights_digest(settings)
    sections = (settings.train, settings.adapter, settings.mask, settings.losses)
    name = work_name("train", settings, *sections, weights, asdict(found))
    frames = load_split(settings, "train"), load_split(settings, "val")
    trainer = make_trainer(settings, found, *frames)
    group = _group(settings, name)
    with sole_driver(group):
        with stage_recorder(settings, name) as recorder:
            record = _start_run(settings, found, recorder, name)
            with connected(settings.ray, cpus=settings.train.workers.least):
                seen = share(frames, partial(fetch_data, settings))
                config = {"settings": settings, "found": found, "frames": seen}
                load_last(run_workers(worker, config, group, "train", trainer.steps, record), trainer)
            for line in trainer.history:  # a driver that died may have missed one
                record(line)
            trainer.load_best()
            _write(settings, found, trainer, weights, name)
        if in_checkout(settings.root):  # what a job leaves in the storage path is all that remains of it
            discard_run(settings.ray.storage, name)


def fetch_data(settings: Settings) -> None:
    """Bring here what the stage reads, where it is not on this node."""
    fetch_missing(settings.root, ["search", *(f"ingest@{name}" for name in settings.with_role("train"))])


def load_split(settings: Settings, split: str) -> Frames:
    """The frames of a split of the train datasets."""
    return load_frames([settings.table(name) for name in settings.with_role("train")], split)


def _group(settings: Settings, name: str) -> Group:
    workers = settings.train.workers
    number = workers.least if workers.least == workers.most else (workers.least, workers.most)
    return Group(name, settings.ray.storage, number, settings.train.max_failures)


def _start_run(
    settings: Settings, found: Hyperparameters, recorder: Recorder, name: str
) -> Callable[[dict[str, float]], None]:
    """Begin the MLflow run `train`; what is returned records a line of the history."""
    sections = settings.model_dump(mode="json", include={"seed", "backbone", "adapter", "mask", "losses", "train"})
    tags = {"stage": "train", **lineage(settings, digests(settings))}
    recorder.start(name, "train", {**sections, "hyperparameters": asdict(found)}, tags)

    def record(line: dict[str, float]) -> None:
        recorder.log(name, {key: value for key, value in line.items() if key != "epoch"}, int(line["epoch"]))

    return record


def make_trainer(
    settings: Settings,
    found: Hyperparameters,
    frames: Frames,
    validation: Frames,
    place: Place = ALONE,
    replicate: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module,
) -> Trainer:
    """The trainer of the final run; every worker, and the stage itself, makes the same one."""
    recipe = make_recipe(settings, settings.train, found)
    return Trainer(build_detector(settings, found), recipe, frames, validation, place, replicate)


def worker(config: dict[str, Any]) -> None:
    """One worker of the group: train epoch by epoch, with a checkpoint after each."""
    settings, (frames, validation) = config["settings"], config["frames"]
    if not (shared(frames) and shared(validation)):
        fetch_data(settings)
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size())
    trainer = make_trainer(settings, config["found"], frames, validation, place, replicate)
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            trainer.load(Path(folder))
    while not trainer.finished:
        line = trainer.run_epoch(Reporter(config["queue"], trainer.epoch) if place.rank == 0 else lambda *_: None)
        if place.rank == 0:
            config["queue"].put(line)
        report(line, trainer.save)


def _write(settings: Settings, found: Hyperparameters, trainer: Trainer, weights: str, run: str) -> None:
    """The detector and the probe, each with its decisions fitted on validation; `weights` is the digest of the
    backbone's, `run` the key of the MLflow run."""
    models = settings.root / "models"
    card = _save(settings, trainer.detector, trainer.validation, models / "detector")
    seen = make_reference(trainer.detector, trainer.frames, trainer.validation, settings.evaluate.batch_size)
    write_reference(models / "detector", seen)
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
        "run": run,
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
