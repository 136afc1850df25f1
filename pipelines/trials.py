"""One trial of the search: a process of Ray Tune's that trains one point after the other, an epoch at each step."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune

from masm.data.frames import Frames, load_frames
from masm.data.versions import fetch_missing
from masm.errors import UserError
from masm.evaluation import macro_video_auc
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe
from masm.scoring import crop_latency, on_device, score
from masm.settings import Settings
from masm.storage import FULL, recall, storage_full, store
from masm.training import Trainer

Tables = tuple[Frames, Frames]
PROGRESS = "trial.json"


def fetch_data(settings: Settings) -> None:
    """Bring here what the search reads, where it is not on this node."""
    names = (*settings.with_role("train"), *settings.with_role("validate"))
    fetch_missing(settings.root, [f"ingest@{name}" for name in names])


def load_tables(settings: Settings) -> Tables:
    """The frames that trials train on, and those that they validate on."""
    tables = [settings.table(dataset) for dataset in settings.with_role("train")]
    frames, validation = (load_frames(tables, split, settings.search.frames) for split in ("train", "val"))
    return frames, validation


class TrialRun(tune.Trainable):
    """Trains the point that it is given, and scores it on the `validate` datasets after every epoch.

    After each epoch it leaves a checkpoint of its own, by its number in the study: Tune's would be lost with the
    stage. A process that takes over an interrupted trial begins with the epoch that the checkpoint has, since nobody
    may have heard of it. A mistake that it finds is a result too: to try it again would change nothing.
    """

    def setup(self, config: dict[str, Any], settings: Settings, tables: Tables | None, work: str) -> None:
        """Called once in each process.

        Args:
            config: see `reset_config`.
            settings: of the workspace.
            tables: frames that all trials share; None where each process reads its own.
            work: path or URI of the folder that has the checkpoints.
        """
        torch.set_num_threads(1)
        self._settings, self._tables, self._work = settings, tables, work
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Turn to another point: `number` of the trial in its study, and the hyper-parameters."""
        self._point = {name: value for name, value in new_config.items() if name != "number"}
        self._checkpoint = f"{self._work}/trial-{new_config['number']}.tar"
        self._trainer: Trainer | None = None
        self._lines: list[dict[str, float]] = []
        self._clock = time.monotonic()
        return True

    def step(self) -> dict[str, Any]:
        """One epoch; `history` has the lines of all. `error` says what mistake was found, `full` that there is no room
        for a checkpoint.
        """
        try:
            if self._trainer is None:
                self._trainer = self._begin()
            else:
                self._train(self._trainer)
            if not self._lines:
                self._train(self._trainer)
            return self._result(self._trainer)
        except UserError as error:
            return self._ended("error", str(error))
        except OSError as error:
            if error.errno not in FULL:
                raise
            return self._ended("full", storage_full(self._work, error))

    def _begin(self) -> Trainer:
        """The trainer of the point, as an interrupted process left it."""
        settings = self._settings
        fetch_data(settings)
        self._tables = self._tables or load_tables(settings)
        found = Hyperparameters.of(self._point, settings.losses, settings.searched)
        recipe = make_recipe(settings, settings.search.optimisation, found)
        trainer = Trainer(on_device(build_detector(settings, found)), recipe, *self._tables)
        with tempfile.TemporaryDirectory() as folder:
            if recall(self._checkpoint, Path(folder)):
                progress = json.loads((Path(folder) / PROGRESS).read_text())
                if progress["point"] == self._point:
                    trainer.load(Path(folder))
                    self._lines = progress["lines"]
        return trainer

    def _train(self, trainer: Trainer) -> None:
        """One epoch, with its score and its checkpoint."""
        line = trainer.run_epoch()
        datasets = self._settings.with_role("validate")
        reached = macro_video_auc(score(trainer.detector, self._settings, datasets))
        if not math.isfinite(reached):
            raise UserError(
                f"the score on {', '.join(datasets)} is not defined: each dataset with role validate needs reals and "
                "fakes."
            )
        now = time.monotonic()
        lines = [*self._lines, {**line, "score": reached, "seconds": now - self._clock}]
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(Path(folder))
            (Path(folder) / PROGRESS).write_text(json.dumps({"point": self._point, "lines": lines}))
            store(Path(folder), self._checkpoint)
        self._lines, self._clock = lines, now

    def _ended(self, why: str, words: str) -> dict[str, Any]:
        """What a trial reports that cannot go on."""
        return {**self._nothing(), "epoch": len(self._lines), "history": self._lines, why: words, "done": True}

    def _result(self, trainer: Trainer) -> dict[str, Any]:
        second = self._settings.search.second_objective
        costs: dict[str, float] = {}
        if second and trainer.finished:
            costs[second.name] = COSTS[second.name](trainer, self._settings)
        return {**self._nothing(), **self._lines[-1], **costs, "history": self._lines, "done": trainer.finished}

    def _nothing(self) -> dict[str, float]:
        """The objectives, unknown as yet: Tune asks for all of them in every result."""
        second = self._settings.search.second_objective
        return dict.fromkeys(["score", *([second.name] if second else [])], math.nan)


def _trainable_parameters(trainer: Trainer, settings: Settings) -> float:
    return sum(parameter.numel() for parameter in trainer.detector.parameters() if parameter.requires_grad)


def _latency(trainer: Trainer, settings: Settings) -> float:
    """With the subspaces apart: merged into the backbone, all points would be alike."""
    return crop_latency(trainer.detector, settings.crop.size)


COSTS = {"trainable_parameters": _trainable_parameters, "latency_ms": _latency}
