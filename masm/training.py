"""The training loop. It knows neither Ray nor plain processes: a worker's place in a group is an argument.

With several workers each takes its share of every batch, and `replica` averages the gradients of what the images
teach: the classification and the metric losses, in one backward pass (see `masm.objective`). The penalties depend on
the parameters alone, which every worker holds alike: their gradients are added after the averaging, on each worker
for itself, so that nothing is sent for them and the mask's statistics see what the images teach alone.

A step is the same however it is computed: a worker may take its share of the batch in parts, one after the other,
whose gradients add up to the share's before they are averaged, and may compute activations twice to keep fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from masm.adapters import LayerMask
from masm.backbones import state_differences
from masm.checkpoints import read_checkpoint, write_checkpoint
from masm.data.augment import augment
from masm.data.batches import Batch, method_batches, steps_of_epoch, training_batches
from masm.data.frames import Frames
from masm.data.selfblend import blend_pairs
from masm.data.stored import pick, sample_ids
from masm.detector import Detector
from masm.errors import UserError
from masm.objective import ALONE, Objective, Outputs, Place, TrainingModel, interleaved
from masm.optimisation import add_penalty, clip_gradients, learning_rate_factor, make_optimizer
from masm.recipe import Recipe
from masm.validation import predict, validation_figures


class Trainer:
    """A detector in training, with its optimiser, its layer mask and the best weights so far.

    Args:
        detector: on its device.
        recipe: the settings of the run.
        frames: the training frames; every worker holds the same.
        validation: frames on which the checkpoint is chosen.
        place: which share of each batch is this worker's.
        replicate: moves the model to the worker's device, and wraps it so that backward averages gradients over the
            group (but within the wrapper's `no_sync`, where it has one).

    Raises:
        UserError: validation has fakes of a kind that the attribution head would not know.
    """

    def __init__(
        self,
        detector: Detector,
        recipe: Recipe,
        frames: Frames,
        validation: Frames,
        place: Place = ALONE,
        replicate: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.detector, self.recipe, self.place = detector, recipe, place
        self.frames, self.validation = frames, validation
        self.layers = detector.layers
        self._steps = steps_of_epoch(frames, recipe.batch_size)
        self.mask = LayerMask(self.layers, recipe.mask)
        self.objective = Objective(recipe.losses, frames, place, recipe.augmentation.self_blends > 0)
        self.objective.check(validation)
        self.model = TrainingModel(detector, self.objective.attributed, recipe.seed)
        if recipe.activation_checkpointing:
            cast(Any, detector.backbone).set_grad_checkpointing(True)
        self.optimizer = make_optimizer(detector, recipe.lr, recipe.head_lr, recipe.weight_decay)
        if self.model.attribution is not None:
            head = {"params": list(self.model.attribution.parameters()), "lr": recipe.head_lr}
            self.optimizer.add_param_group({**head, "weight_decay": recipe.weight_decay})
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._replica = replicate(self.model)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.mask_history: list[dict[str, Any]] = [{"step": 0, "free": self._free()}]
        self.best_auc = -math.inf
        self.best: dict[str, Tensor] = {}

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.epochs * self._steps

    @property
    def finished(self) -> bool:
        """Whether every epoch is done."""
        return self.epoch >= self.recipe.epochs

    def run_epoch(self, on_step: Callable[[int, int], None] = lambda step, steps: None) -> dict[str, float]:
        """Train one epoch, validate, and return the epoch's line of the history.

        Args:
            on_step: called with steps done and steps in all of the epoch.

        Raises:
            UserError: the loss or its gradient is no longer finite; the weights are those before the step.
        """
        self.detector.train()
        if self.epoch == 0:
            self._calibrate()
        losses = []
        for step, batch in enumerate(self._batches(), self.epoch * self._steps):
            self._set_rates(step)
            losses.append(self._step(batch, step))
            on_step(len(losses), self._steps)
        self.epoch += 1
        line = {"epoch": self.epoch, "loss": self._mean(losses), **self._validate()}
        self.history.append(line)
        return line

    def _batches(self) -> Iterator[Batch]:
        """This worker's share of the present epoch."""
        recipe, place = self.recipe, self.place
        return training_batches(
            self.frames, recipe.batch_size, recipe.seed, self.epoch, place.rank, place.world,
            recipe.augmentation.self_blends,
        )  # fmt: skip

    def _calibrate(self) -> None:
        """Show a static mask the gradients of the pretrained model until it has decided."""
        draw = 0
        while self.mask.calibrating:
            if self.recipe.mask.over == "method":
                self._observe_methods(draw)
                self._decide(step=0)
            else:
                self._observe_batches()
            draw += 1

    def _observe_batches(self) -> None:
        """Show the mask the gradients of the epoch's batches, up to its decision."""
        for batch in self._batches():
            self._backward(batch)
            self.mask.observe()
            self._decide(step=0)
            if not self.mask.calibrating:
                break

    def _observe_methods(self, draw: int) -> None:
        """Show the mask the gradient of one batch of each forgery method."""
        recipe, place = self.recipe, self.place
        batches = method_batches(self.frames, recipe.batch_size, recipe.seed, draw, place.rank, place.world)
        for method, batch in batches:
            self._backward(batch)
            self.mask.observe(method)

    def _decide(self, step: int) -> None:
        if self.mask.decide():
            earlier = [state for state in self.mask_history if state["step"] < step]
            self.mask_history = [*earlier, {"step": step, "free": self._free()}]

    def _inputs(self, batch: Batch) -> Tensor:
        """What the detector sees of a batch: self-blended, augmented images (b, 3, S, S) in [0, 1] on the device."""
        recipe = self.recipe
        images = batch.images.to(self.detector.device, non_blocking=True)
        if batch.blended.any():
            landmarks = self.frames.landmarks[batch.samples]
            images = blend_pairs(images, batch.samples, batch.blended, landmarks, recipe.seed, self.epoch)
        return augment(images, batch.samples, recipe.seed, self.epoch, recipe.augmentation)

    def _outputs(self, batch: Batch) -> Outputs:
        inputs = self._inputs(batch)
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.detector.device.type, torch.bfloat16, enabled=half):
            return self._replica(inputs)

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the classification and the metric losses, averaged over the workers; returns their sum.

        One backward pass for all of them: the mask compares the gradients of what the images teach, of which the
        metric losses are a part; the classification's own would cost a second pass. With accumulation it takes the
        batch in equal parts, each with a mean of its own, of which it takes the mean: that of the batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = batch.split(self.recipe.accumulation)
        total = torch.zeros((), device=self.detector.device)
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self._unaveraged():
                loss = self.objective(self._outputs(part), part) / len(parts)
                loss.backward()
            total += loss.detach()
        return total

    def _unaveraged(self) -> AbstractContextManager[None]:
        """Where gradients add up on each worker, to be averaged with those of the last part."""
        no_sync: Callable[[], AbstractContextManager[None]] = getattr(self._replica, "no_sync", nullcontext)
        return no_sync()

    def _step(self, batch: Batch, step: int) -> float:
        loss = self._backward(batch)
        if self.recipe.mask.over == "batch":
            self.mask.observe()
        add_penalty(self.layers, self.recipe.lambda_orth, self.recipe.lambda_spec)
        norm = clip_gradients(self.optimizer, self.recipe.clip_norm)
        self._check_finite(loss, norm, batch, step)
        self.mask.silence(self.optimizer)
        self.optimizer.step()
        if self.recipe.mask.over == "batch":
            self._decide(step + 1)
        elif self.mask.observing and (step + 1) % self.recipe.mask.interval == 0:
            self._observe_methods(step + 1)
            self._decide(step + 1)
        return loss.item()

    def _check_finite(self, loss: Tensor, norm: Tensor, batch: Batch, step: int) -> None:
        """Raise UserError where a step would put into the weights what is not finite.

        The gradient is averaged over the workers, so that all of them stop at the same step.
        """
        if torch.isfinite(loss) and torch.isfinite(norm):
            return
        whose = "The batch" if self.place.world == 1 else "This worker's share of the batch"
        names = ", ".join(sample_ids(self.frames.images, batch.samples))
        raise UserError(
            f"the loss is {loss.item():.6g} and the norm of the gradient {norm.item():.6g} at step {step} of epoch "
            f"{self.epoch}: lower the learning rate (lr), or look at the batch; the checkpoints of the epochs before "
            f"are kept. {whose}: {names}."
        )

    def _set_rates(self, step: int) -> None:
        factor = learning_rate_factor(step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = factor * rate

    def _mean(self, losses: list[float]) -> float:
        """Of the losses of an epoch's steps, of which each worker knows those of its share."""
        own = torch.tensor(losses, dtype=torch.float64, device=self.detector.device)
        return float(interleaved(own, len(own) * self.place.world, self.place).mean())

    def _validate(self) -> dict[str, float]:
        """AUC on the validation frames, where there are several datasets of each and their mean; better weights are
        remembered. Each worker scores its share of the frames, and all see all scores."""
        own = pick(self.validation.images, np.arange(self.place.rank, len(self.validation), self.place.world))
        logits = torch.from_numpy(predict(self.detector, own, self.recipe.batch_size * 4))
        logits = interleaved(logits.to(self.detector.device), len(self.validation), self.place)
        figures = validation_figures(self.validation, logits.cpu().numpy())
        auc = figures["val_auc"]
        if auc > self.best_auc:
            self.best_auc = auc
            self.best = {name: p.detach().clone() for name, p in self._trainable().items()}
        return figures

    def load_best(self) -> None:
        """Put the weights of the best epoch into the detector.

        Raises:
            UserError: there is none.
        """
        if not self.best:
            raise UserError("no epoch had a validation AUC: lower the learning rate (lr).")
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(self.best[name])

    def _trainable(self) -> dict[str, nn.Parameter]:
        named = self.model.named_parameters()
        return {name.removeprefix("detector."): p for name, p in named if p.requires_grad}

    def _free(self) -> dict[str, list[bool]]:
        return {name: list(free) for name, free in self.mask.free.items()}

    def _losses(self) -> dict[str, Any]:
        """What the losses depend on, with the groups that the attribution head knows."""
        known = self.objective.attribution
        return {**asdict(self.recipe.losses), "attributed": list(known.fakes) if known else []}

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on as if nothing had happened (safetensors and JSON)."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._trainable().items()}
        parts = {
            "now": {name: parameter.detach() for parameter, name in names.items()},
            "best": self.best,
            "mask": self.mask.state_dict(),
            "optimizer": {
                f"{names[cast(nn.Parameter, parameter)]}/{key}": value
                for parameter, state in self.optimizer.state.items()
                for key, value in state.items()
            },
        }
        progress = {
            "epoch": self.epoch,
            "best_auc": self.best_auc,
            "history": self.history,
            "mask_history": self.mask_history,
            "losses": self._losses(),
        }
        write_checkpoint(folder, parts, progress)

    def load(self, folder: Path) -> None:
        """Go on from a folder that `save` wrote.

        Raises:
            UserError: it was written with other settings.
        """
        parts, progress = read_checkpoint(folder, self.detector.device)
        if (losses := self._losses()) != progress["losses"]:
            raise UserError(
                f"the checkpoint in {folder} was made with other losses ({progress['losses']}, not {losses}): resume "
                "with the settings and the methods that it was made with."
            )
        if differences := state_differences(parts.get("now", {}), self._trainable()):
            raise UserError(
                f"the checkpoint in {folder} was made with other settings ({differences}): resume with the settings "
                "that it was made with."
            )
        trainable = self._trainable()
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(parts["now"][name])
        for place, value in parts.get("optimizer", {}).items():
            name, key = place.split("/")
            self.optimizer.state[trainable[name]][key] = value
        self.best = parts.get("best", {})
        self.mask.load_state_dict(parts.get("mask", {}))
        self.epoch, self.best_auc = progress["epoch"], progress["best_auc"]
        self.history, self.mask_history = progress["history"], progress["mask_history"]
