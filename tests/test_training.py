from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from masm.adapters import MaskSettings
from masm.data.augment import Augmentation
from masm.data.batches import training_batches
from masm.errors import UserError
from masm.losses import LossSettings
from masm.objective import Place
from masm.optimisation import learning_rate_factor
from masm.training import Trainer
from masm.validation import predict, validation_figures
from tests.trainers import (
    ADAPTER,
    ADAPTIVE,
    ALL_LOSSES,
    METHODS,
    RECIPE,
    make_detector,
    make_frames,
    make_trainer,
    trainable,
    two_methods,
)


def test_training_learns_and_keeps_the_best_epoch() -> None:
    """Best on the validation split: the reference benchmark chooses on the test set (defect 3)."""
    trainer = make_trainer(replace(RECIPE, epochs=8))
    while not trainer.finished:
        trainer.run_epoch()
    losses = [line["loss"] for line in trainer.history]
    assert losses[-1] < 0.7 * losses[0]
    assert trainer.best_auc == max(line["val_auc"] for line in trainer.history)
    trainer.load_best()
    logits = predict(trainer.detector, trainer.validation.images, batch_size=7)
    assert roc_auc_score(trainer.validation.labels, logits) == pytest.approx(trainer.best_auc, abs=1e-12)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = make_trainer(), make_trainer()
    for trainer in (first, second):
        trainer.run_epoch()
    assert all(torch.equal(value, trainable(second)[name]) for name, value in trainable(first).items())


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(self_blends=0.5)], ids=["mild", "self-blends"])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, augmentation: Augmentation) -> None:
    recipe = replace(RECIPE, augmentation=augmentation)
    whole = make_trainer(recipe)
    for _ in range(4):
        whole.run_epoch()
    first = make_trainer(recipe)
    for _ in range(2):
        first.run_epoch()
    first.save(tmp_path)
    second = make_trainer(recipe)
    second.load(tmp_path)
    while not second.finished:
        second.run_epoch()
    assert second.history == whole.history
    assert second.mask_history == whole.mask_history
    assert all(torch.equal(value, trainable(whole)[name]) for name, value in trainable(second).items())
    assert json.loads((tmp_path / "progress.json").read_text())["epoch"] == 2


def test_self_blends_reach_the_training_and_change_no_label() -> None:
    trainer = make_trainer(replace(RECIPE, augmentation=Augmentation(self_blends=1)))
    batch = next(trainer._batches())
    plain = make_trainer()._inputs(replace(batch, blended=np.zeros(4, bool)))
    inputs = trainer._inputs(batch)
    assert batch.blended.all()
    assert batch.labels.tolist() == [0, 1] * 4
    # A fake is now about its real; both are mirrored and recoloured each by itself.
    for images, alike in ((inputs, True), (plain, False)):
        for real, fake in zip(images[::2], images[1::2], strict=True):
            views = [np.corrcoef(real.ravel(), view.ravel())[0, 1] for view in (fake, fake.flip(-1))]
            assert (max(views) > 0.6) == alike


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    first = make_trainer()
    first.run_epoch()
    first.save(tmp_path)
    other = Trainer(make_detector(replace(ADAPTER, rank=1)), RECIPE, first.frames, first.validation)
    with pytest.raises(
        UserError, match=r"other settings .* backbone\.blocks\.0\.attn\.qkv\.q\..* \(2, 49\), not \(1, 49\)"
    ):
        other.load(tmp_path)


@pytest.mark.parametrize("method", ["effort", "lora", "layernorm", "full", "probe"])
def test_every_method_learns_and_resumes(tmp_path: Path, method: str) -> None:
    adapter = replace(ADAPTER, method=method, targets=("q", "k", "v", "fc1"))
    trainers = [Trainer(make_detector(adapter), RECIPE, make_frames(48, 1), make_frames(24, 2)) for _ in range(2)]
    trainers[0].run_epoch()
    trainers[0].save(tmp_path)
    trainers[1].load(tmp_path)
    for trainer in trainers:
        while not trainer.finished:
            trainer.run_epoch()
    whole, resumed = trainers
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert whole.history == resumed.history
    assert all(torch.equal(value, trainable(resumed)[name]) for name, value in trainable(whole).items())


def test_the_mask_is_logged_each_time_it_changes() -> None:
    trainer = make_trainer()
    trainer.run_epoch()
    states = trainer.mask_history
    assert states[0]["step"] == 0
    assert len(states) > 1
    assert all(state["step"] % ADAPTIVE.interval == 0 for state in states[1:])
    assert all(one["free"] != next_["free"] for one, next_ in pairwise(states))


def test_a_static_mask_is_decided_before_the_first_step() -> None:
    static = MaskSettings("static", "batch", "quantile", threshold=0.7, interval=5, momentum=0.9)
    trainer = make_trainer(replace(RECIPE, mask=static))
    before = trainable(trainer)
    trainer.run_epoch()
    assert len(trainer.mask_history) == 1
    for layer, free in trainer.mask_history[0]["free"].items():
        moved = [
            not torch.equal(before[name], value)
            for name, value in trainable(trainer).items()
            if name.startswith(f"backbone.{layer}.")
        ]
        assert moved
        assert all(moved) if any(free) else not any(moved)
    assert {any(free) for free in trainer.mask_history[0]["free"].values()} == {True, False}


@pytest.mark.parametrize("kind", ["adaptive", "static"])
def test_a_mask_over_methods_is_decided_on_batches_of_their_own(kind: str) -> None:
    trainer = make_trainer(replace(RECIPE, mask=replace(METHODS, kind=kind)))
    trainer.run_epoch()
    assert set(trainer.mask.state_dict()) >= {"swap/mean", "reenact/mean"}
    states = trainer.mask_history
    assert (len(states) > 1) == (kind == "adaptive")
    assert all(state["step"] % METHODS.interval == 0 for state in states)
    assert not all(all(free) for free in states[-1]["free"].values())


def test_penalties_are_added_to_the_classification_gradient() -> None:
    """Heavy penalties hold the factors near their start; without them they go further."""

    def distance(weight: float) -> float:
        trainer = make_trainer(replace(RECIPE, lambda_orth=weight, lambda_spec=weight, clip_norm=1e9))
        before = trainable(trainer)
        trainer.run_epoch()
        return sum(float((v - before[k]).square().sum()) for k, v in trainable(trainer).items() if "head" not in k)

    assert distance(1e4) < 0.8 * distance(0.0)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.detector.head.weight.fill_(math.nan)
    before = trainable(trainer)
    says = r"the loss is nan and .* nan at step 0 of epoch 0: lower the learning rate \(lr\)"
    with pytest.raises(UserError, match=says) as caught:
        trainer.run_epoch()
    first = next(training_batches(trainer.frames, RECIPE.batch_size, RECIPE.seed, epoch=0))
    assert str(caught.value).endswith(f"The batch: {', '.join(map(str, first.samples))}.")
    for name, value in trainable(trainer).items():  # what the step had found is in no weight
        assert torch.equal(before[name], value) or name == "head.weight"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights(value: float) -> None:
    """At an epoch's last step, after which it would be in the checkpoint; the loss is finite."""
    trainer = make_trainer()
    before: dict[str, torch.Tensor] = {}

    def on_step(step: int, steps: int) -> None:
        if step == steps - 1:
            before.update(trainable(trainer))
            trainer.detector.head.bias.register_hook(lambda gradient: torch.full_like(gradient, value))

    with pytest.raises(UserError, match=rf"the loss is \d\S* and the norm of the gradient {value} at step 5 .* lower"):
        trainer.run_epoch(on_step)
    assert before
    assert all(torch.equal(before[name], now) for name, now in trainable(trainer).items())


def test_several_workers_name_their_shares() -> None:
    trainer = make_trainer(place=Place(1, 2))
    batch = next(trainer._batches())
    with pytest.raises(UserError, match=f"This worker's share of the batch: {', '.join(map(str, batch.samples))}.$"):
        trainer._check_finite(torch.tensor(0.5), torch.tensor(math.inf), batch, 0)


def test_without_a_validation_auc_there_is_no_best_epoch() -> None:
    frames = make_frames(48, 1)
    reals = replace(frames, labels=np.zeros(48, int), methods=np.full(48, "real"))
    trainer = Trainer(make_detector(), replace(RECIPE, epochs=1), frames, reals)
    trainer.run_epoch()
    with pytest.raises(UserError, match="no epoch had a validation AUC: lower the learning rate"):
        trainer.load_best()


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 90)) for i in range(90)])
    assert learning_rate_factor(0, 1) == 1


def test_every_step_has_its_rate_and_every_epoch_its_order() -> None:
    """Defect 4 of the reference benchmark: its scheduler never steps, and its sampler never hears of the epoch."""
    trainer = make_trainer(replace(RECIPE, epochs=3))
    base = [group["lr"] for group in trainer.optimizer.param_groups]
    rates, orders = [], []
    while not trainer.finished:
        orders.append([batch.samples.tolist() for batch in trainer._batches()])
        trainer.run_epoch(lambda *_: rates.append([group["lr"] for group in trainer.optimizer.param_groups]))
    factors = [learning_rate_factor(step, trainer.steps) for step in range(trainer.steps)]
    np.testing.assert_allclose(rates, np.outer(factors, base))
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("method", ["masm", "probe", "layernorm"])
def test_all_losses_train_and_resume(tmp_path: Path, method: str) -> None:
    recipe = replace(RECIPE, losses=ALL_LOSSES)
    frames, validation = two_methods(make_frames(48, 1)), two_methods(make_frames(24, 2))
    adapter = replace(ADAPTER, method=method)
    whole, resumed = (Trainer(make_detector(adapter), recipe, frames, validation) for _ in range(2))
    whole.run_epoch()
    whole.save(tmp_path)
    resumed.load(tmp_path)
    for trainer in (whole, resumed):
        while not trainer.finished:
            trainer.run_epoch()
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    assert whole.history == resumed.history
    named = dict(resumed.model.named_parameters())
    assert all(torch.equal(value, named[name]) for name, value in whole.model.named_parameters())
    whole.load_best()
    assert not [name for name in whole.detector.state_dict() if "attribution" in name]


def test_the_attribution_head_learns_the_methods() -> None:
    """Reals are smooth, and the fakes of one method are bright."""
    recipe = replace(RECIPE, epochs=8, losses=LossSettings(attribution="method", attribution_weight=1.0))
    frames = two_methods(make_frames(48, 1))
    images = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) for image in frames.images]
    lit = [np.clip(i * (1.5 if m == "swap" else 1.0), 0, 255) for i, m in zip(images, frames.methods, strict=True)]
    frames = replace(frames, images=[cv2.imencode(".png", image.astype(np.uint8))[1].tobytes() for image in lit])
    trainer = Trainer(make_detector(), recipe, frames, frames)
    while not trainer.finished:
        trainer.run_epoch()
    with torch.inference_mode():
        batch = next(trainer._batches())
        guesses = trainer.model(trainer._inputs(batch)).attribution.argmax(dim=1).tolist()
    names = ("real", *trainer.objective.attribution.fakes)
    right = np.mean([names[guess] == name for guess, name in zip(guesses, frames.methods[batch.samples], strict=True)])
    assert right >= 0.75


def test_a_checkpoint_of_other_losses_is_refused(tmp_path: Path) -> None:
    first = make_trainer()
    first.run_epoch()
    first.save(tmp_path)
    with pytest.raises(UserError, match=r"made with other losses .*'triplet': 'none'.* not .*'triplet': 'batch_all'"):
        make_trainer(replace(RECIPE, losses=ALL_LOSSES)).load(tmp_path)


def test_self_blends_are_a_method_of_their_own() -> None:
    losses = LossSettings(attribution="method", attribution_weight=1.0)
    trainer = make_trainer(replace(RECIPE, losses=losses, augmentation=Augmentation(self_blends=0.5)))
    grouping = trainer.objective.attribution
    assert grouping.fakes == ("reenact", "self-blend", "swap")
    seen = set()
    for batch in trainer._batches():
        numbers = grouping.numbers(trainer.frames, batch.samples, batch.replaced).reshape(-1, 2)
        methods = trainer.frames.methods[batch.samples].reshape(-1, 2)[:, 1]
        expected = ["self-blend" if blend else method for blend, method in zip(batch.blended, methods, strict=True)]
        assert not numbers[:, 0].any()
        assert [grouping.fakes[number - 1] for number in numbers[:, 1]] == expected
        seen |= set(expected)
    assert seen == {"reenact", "self-blend", "swap"}


def test_self_blends_are_of_no_dataset() -> None:
    """The reals are of one dataset and the fakes of another, so that no self-blend is like the fake it replaces."""
    frames = make_frames(48, 1)
    frames = replace(frames, datasets=frames.labels, dataset_names=("a", "b"))
    losses = LossSettings(alignment_weight=1.0, labels="dataset")
    recipe = replace(RECIPE, losses=losses, augmentation=Augmentation(self_blends=0.5))
    trainer = Trainer(make_detector(), recipe, frames, frames)
    grouping = trainer.objective.pairs
    assert grouping.fakes == ("b", "self-blend")
    batch = next(batch for batch in trainer._batches() if 0 < batch.blended.sum() < len(batch.blended))
    numbers = grouping.numbers(frames, batch.samples, batch.replaced).reshape(-1, 2)
    assert not numbers[:, 0].any()
    assert numbers[:, 1].tolist() == [2 if blend else 1 for blend in batch.blended]


def test_methods_that_the_attribution_head_does_not_know_are_named(tmp_path: Path) -> None:
    recipe = replace(RECIPE, losses=ALL_LOSSES)
    frames = two_methods(make_frames(48, 1))
    other = replace(frames, methods=np.where(frames.methods == "swap", "morph", frames.methods))
    with pytest.raises(UserError, match="fakes of method morph are unknown: training has reenact, swap"):
        Trainer(make_detector(), recipe, frames, other)
    first = Trainer(make_detector(), recipe, frames, frames)
    first.run_epoch()
    first.save(tmp_path)
    with pytest.raises(UserError, match=r"other losses .*'reenact', 'swap'.* not .*'morph', 'reenact'"):
        Trainer(make_detector(), recipe, other, other).load(tmp_path)


def test_validation_is_the_mean_of_the_datasets_that_have_both_classes() -> None:
    frames = make_frames(40, 3)
    datasets = np.repeat([0, 1, 2], [20, 12, 8])
    labels = np.where(datasets == 2, 0, frames.labels)
    frames = replace(frames, labels=labels, datasets=datasets, dataset_names=("a", "b", "c"))
    logits = np.random.default_rng(0).normal(size=40) + labels
    logits[datasets == 1] += 10  # scores of datasets need not lie on one scale
    found = validation_figures(frames, logits)
    areas = [roc_auc_score(labels[datasets == number], logits[datasets == number]) for number in (0, 1)]
    assert (found["val_auc.a"], found["val_auc.b"]) == pytest.approx(areas)
    assert math.isnan(found["val_auc.c"])
    assert found["val_auc"] == pytest.approx(np.mean(areas))


def test_datasets_of_one_class_each_are_judged_together() -> None:
    frames = make_frames(40, 3)
    frames = replace(frames, datasets=frames.labels, dataset_names=("reals", "fakes"))
    trainer = Trainer(make_detector(), RECIPE, make_frames(48, 1), frames)
    line = trainer.run_epoch()
    logits = predict(trainer.detector, frames.images, 16)
    assert line["val_auc"] == pytest.approx(roc_auc_score(frames.labels, logits))
    assert math.isnan(line["val_auc.reals"])
    trainer.load_best()
