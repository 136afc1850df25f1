"""The training loop. It knows neither Ray nor plain processes: a worker's place in a group is an argument.

With several workers each takes its share of every batch, and `replica` averages the gradients of what the images
teach: the classification and the metric losses, in one backward pass (see `masm.objective`). The penalties depend on
the parameters alone, which every worker holds alike: their gradients are added after the averaging, on each worker
for itself, so that nothing is sent for them and the mask's statistics see what the images teach alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from masm.adapters import LayerMask, MaskSettings, SubspaceLinear, penalty
from masm.backbones import state_differences
from masm.data.augment import MILD, Augmentation, augment, to_float
from masm.data.batches import Batch, method_batches, steps_of_epoch, training_batches
from masm.data.frames import Frames
from masm.data.selfblend import blend_pairs
from masm.data.stored import decoded, in_order, sample_ids
from masm.detector import Detector
from masm.errors import UserError
from masm.losses import LossSettings
from masm.metrics import area_under_curve
from masm.objective import ALONE, Objective, Place, TrainingModel

WARMUP_SHARE = 0.1
"""Share of the steps over which the learning rate rises, before it falls along a cosine."""


@dataclass(frozen=True)
class Recipe:
    """One run of the loop: what params.yaml fixes, and what the search found.

    `epochs`, `batch_size` (over all workers), `lr`, `head_lr`, `weight_decay` (of the head) and `clip_norm`
    as in params.yaml, and `augmentation`; `lambda_orth` and `lambda_spec` weight the two penalties, `losses` says
    what is minimised beside the classification loss.
    """

    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    clip_norm: float
    lambda_orth: float
    lambda_spec: float
    mask: MaskSettings
    seed: int
    augmentation: Augmentation = MILD
    losses: LossSettings = field(default_factory=LossSettings)


class Trainer:
    """A detector in training, with its optimiser, its layer mask and the best weights so far.

    Args:
        detector: on its device.
        recipe: the settings of the run.
        frames: the training frames; every worker holds the same.
        validation: frames on which the checkpoint is chosen.
        place: which share of each batch is this worker's.
        replicate: wraps the detector so that backward averages gradients over the group.

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
        line = {"epoch": self.epoch, "loss": float(np.mean(losses)), **self._validate()}
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
        images = batch.images.to(self.detector.device)
        if batch.blended.any():
            landmarks = self.frames.landmarks[batch.samples]
            images = blend_pairs(images, batch.samples, batch.blended, landmarks, recipe.seed, self.epoch)
        return augment(images, batch.samples, recipe.seed, self.epoch, recipe.augmentation)

    def _backward(self, batch: Batch) -> Tensor:
        """Gradients of the classification and the metric losses, averaged over the workers; returns their sum.

        One backward pass for all of them: the mask compares the gradients of what the images teach, of which the
        metric losses are a part; the classification's own would cost a second pass.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(self._replica(self._inputs(batch)), batch)
        loss.backward()
        return loss.detach()

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
            f"{self.epoch}: lower train.lr, or look at the batch; the checkpoints of the epochs before are kept. "
            f"{whose}: {names}."
        )

    def _set_rates(self, step: int) -> None:
        factor = learning_rate_factor(step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = factor * rate

    def _validate(self) -> dict[str, float]:
        """AUC on the validation frames, where there are several datasets of each and their mean; better weights are
        remembered."""
        logits = predict(self.detector, self.validation.images, self.recipe.batch_size * 4)
        figures = validation_figures(self.validation, logits)
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
            raise UserError("no epoch had a validation AUC: lower train.lr.")
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
        names = {id(p): name for name, p in self._trainable().items()}
        tensors = {f"now.{name}": p.detach() for name, p in self._trainable().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"mask.{name}": tensor for name, tensor in self.mask.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}/{key}": value for key, value in state.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "state.safetensors")
        progress = {
            "epoch": self.epoch,
            "best_auc": self.best_auc,
            "history": self.history,
            "mask_history": self.mask_history,
            "losses": self._losses(),
        }
        (folder / "progress.json").write_text(json.dumps(progress))

    def load(self, folder: Path) -> None:
        """Go on from a folder that `save` wrote.

        Raises:
            UserError: it was written with other settings.
        """
        progress = json.loads((folder / "progress.json").read_text())
        if (losses := self._losses()) != progress["losses"]:
            raise UserError(
                f"the checkpoint in {folder} was made with other losses ({progress['losses']}, not {losses}): resume "
                "with the settings and the methods that it was made with."
            )
        tensors = load_file(folder / "state.safetensors", device=str(self.detector.device))
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "mask": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        if differences := state_differences(parts["now"], self._trainable()):
            raise UserError(
                f"the checkpoint in {folder} was made with other settings ({differences}): resume with the settings "
                "that it was made with."
            )
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                parameter.copy_(parts["now"][name])
                state = {
                    key.split("/")[1]: value for key, value in parts["optimizer"].items() if key.split("/")[0] == name
                }
                if state:
                    self.optimizer.state[parameter] = state
        self.best = parts["best"]
        self.mask.load_state_dict(parts["mask"])
        self.epoch, self.best_auc = progress["epoch"], progress["best_auc"]
        self.history, self.mask_history = progress["history"], progress["mask_history"]


def validation_figures(frames: Frames, logits: np.ndarray) -> dict[str, float]:
    """`val_auc`, by which the checkpoint is chosen, and `val_auc.DATASET` of each dataset where there are several.

    It is the mean of the datasets' AUCs that are defined; where no dataset has both classes (their own are NaN), the
    AUC over all frames. A mean over datasets does not ask their scores to lie on one scale.

    Args:
        frames: of validation, both classes among them.
        logits: (n,).
    """
    areas = {
        frames.dataset_names[number]: area_under_curve(frames.labels[own], logits[own])
        for number in np.unique(frames.datasets).tolist()
        for own in [frames.datasets == number]
    }
    defined = [area for area in areas.values() if math.isfinite(area)]
    mean = float(np.mean(defined)) if defined else area_under_curve(frames.labels, logits)
    several = {f"val_auc.{name}": area for name, area in areas.items()} if len(areas) > 1 else {}
    return {"val_auc": mean, **several}


def defined(line: Mapping[str, float]) -> dict[str, float | None]:
    """Figures, as a line of the history, for JSON, which has no NaN: null is an AUC of one class alone."""
    return {name: value if math.isfinite(value) else None for name, value in line.items()}


def make_optimizer(detector: Detector, lr: float, head_lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over what of the detector learns; fused, since many subspaces are many small tensors."""
    return torch.optim.AdamW(detector.parameter_groups(lr, head_lr, weight_decay), fused=True)


def add_penalty(layers: Mapping[str, SubspaceLinear], lambda_orth: float, lambda_spec: float) -> None:
    """Add the penalties' gradient to the one that the factors hold."""
    if not layers or not (lambda_orth or lambda_spec):
        return
    factors = [piece for layer in layers.values() for piece in layer.pieces()]
    gradients = torch.autograd.grad(penalty(layers, lambda_orth, lambda_spec), factors)
    torch._foreach_add_([cast(Tensor, factor.grad) for factor in factors], gradients)


def clip_gradients(optimizer: torch.optim.Optimizer, norm: float) -> Tensor:
    """Scale all gradients down together where their norm is greater; returns the norm () that they had."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, norm, foreach=True)


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear rise over the first tenth of the steps, then a half cosine down to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def predict(detector: Detector, images: Sequence[bytes], batch_size: int) -> np.ndarray:
    """Logits (n,) float64 of encoded images, in their order."""
    detector.eval()
    logits = [
        detector(to_float(pixels.to(detector.device))).double().cpu()
        for pixels in decoded(images, in_order(len(images), batch_size))
    ]
    return torch.cat(logits).numpy()
