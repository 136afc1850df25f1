"""A step is the same for any number of workers, for a batch in parts, and for activations that are computed twice."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from masm.adapters import MaskSettings
from masm.errors import UserError
from masm.losses import attribution_loss, classification_loss, metric_loss
from masm.objective import Place, interleaved
from masm.recipe import Recipe
from masm.training import Trainer
from tests.trainers import (
    ADAPTER,
    ALL_LOSSES,
    METHODS,
    RECIPE,
    make_detector,
    make_frames,
    make_trainer,
    trainable,
    two_methods,
)

EPOCHS = 2
STATIC = MaskSettings("static", "batch", "quantile", threshold=0.7, interval=5, momentum=0.9)
SHARED = {
    "over batches": RECIPE,
    "over methods": replace(RECIPE, mask=METHODS),
    "all losses": replace(RECIPE, losses=ALL_LOSSES),
    "in parts": replace(RECIPE, accumulation=2),
    "in parts, static mask": replace(RECIPE, mask=STATIC, accumulation=2),
    "computed twice": replace(RECIPE, accumulation=2, activation_checkpointing=True),
}


def plain(recipe: Recipe) -> Recipe:
    """The same steps, computed at once."""
    return replace(recipe, accumulation=1, activation_checkpointing=False)


def trained(recipe: Recipe, **how: Any) -> Trainer:
    trainer = make_trainer(recipe, **how)
    for _ in range(EPOCHS):
        trainer.run_epoch()
    return trainer


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: value.grad for name, value in named if value.grad is not None}


class Counted:
    """Wraps models in DDP, and counts the buckets of gradients that are averaged."""

    def __init__(self) -> None:
        self.buckets = 0

    def __call__(self, module: nn.Module) -> nn.Module:
        model = DistributedDataParallel(module)
        model.register_comm_hook(None, lambda state, bucket: self._average(bucket))
        return model

    def _average(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.buckets += 1
        return allreduce_hook(dist.group.WORLD, bucket)


def _two_workers(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for values in (3, 4):
        own = torch.arange(values, dtype=torch.float64)[rank::2]
        assert interleaved(own, values, Place(rank, 2)).tolist() == list(range(values))
    for name, recipe in SHARED.items():
        count = Counted()
        first = make_trainer(recipe, Place(rank, 2), replicate=count)
        first._backward(next(first._batches()))
        save_file(gradients(first), f"{folder}/{name}.{rank}.gradients")
        trainer = trained(recipe, place=Place(rank, 2), replicate=DistributedDataParallel)
        save_file(trainable(trainer), f"{folder}/{name}.{rank}.weights")
        record = {"history": trainer.history, "masks": trainer.mask_history, "buckets": count.buckets}
        Path(folder, f"{name}.{rank}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers wrote."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(_two_workers, (str(folder),), nprocs=2)
    return folder


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """But for the rounding that AdamW's first steps make larger."""
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_workers_train_as_one(two_workers: Path, name: str) -> None:
    """Same losses, same masks and the same weights but for rounding, although each sees half of a batch."""
    alone = trained(plain(SHARED[name]))
    both = [load_file(two_workers / f"{name}.{rank}.weights") for rank in (0, 1)]
    records = [json.loads((two_workers / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
    assert records[0] == records[1]
    assert_same_curve(records[0]["history"], alone.history)
    assert records[0]["masks"] == alone.mask_history
    for key, value in trainable(alone).items():
        assert torch.equal(both[0][key], both[1][key])
        torch.testing.assert_close(both[0][key], value, rtol=4e-3, atol=4e-4)


@pytest.mark.slow
def test_parts_are_averaged_once(two_workers: Path) -> None:
    """Not after each of them: that would send as often as there are parts."""
    buckets = {name: json.loads((two_workers / f"{name}.0.json").read_text())["buckets"] for name in SHARED}
    assert buckets["in parts"] == buckets["over batches"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all losses", "in parts", "computed twice"])
def test_two_workers_have_the_gradients_of_the_whole_batch(two_workers: Path, name: str) -> None:
    """Of the sum of all losses over the whole batch, computed here without the trainer's loop."""
    losses = SHARED[name].losses
    trainer = make_trainer(plain(SHARED[name]))
    batch = next(trainer._batches())
    outputs = trainer.model(trainer._inputs(batch))
    loss = classification_loss(outputs.logits, batch.labels)
    if losses == ALL_LOSSES:
        numbers = {"real": 0, "reenact": 1, "swap": 2}
        groups = torch.tensor([numbers[method] for method in trainer.frames.methods[batch.samples]])
        loss = loss + metric_loss(outputs.features, groups, losses)
        loss = loss + 0.5 * attribution_loss(outputs.attribution, groups)
    loss.backward()
    expected = gradients(trainer)
    assert ("attribution.weight" in expected) == (losses == ALL_LOSSES)
    for rank in (0, 1):
        found = load_file(two_workers / f"{name}.{rank}.gradients")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_same_step(parts: int) -> None:
    """Same gradients, losses and masks but for rounding."""
    recipe = replace(RECIPE, accumulation=parts)
    whole, cut = make_trainer(), make_trainer(recipe)
    loss, of_parts = (trainer._backward(next(trainer._batches())) for trainer in (whole, cut))
    torch.testing.assert_close(of_parts, loss, rtol=1e-5, atol=0)
    expected = gradients(whole)
    for name, value in gradients(cut).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    whole, cut = trained(RECIPE), trained(recipe)
    assert_same_curve(cut.history, whole.history)
    assert cut.mask_history == whole.mask_history


def test_attribution_is_the_same_in_parts() -> None:
    losses = replace(ALL_LOSSES, triplet="none", alignment_weight=0.0, uniformity_weight=0.0)
    whole, cut = (trained(replace(RECIPE, losses=losses, accumulation=parts)) for parts in (1, 2))
    assert_same_curve(cut.history, whole.history)


def test_parts_hold_whole_pairs_in_their_order() -> None:
    batch = next(make_trainer()._batches())
    parts = batch.split(2)
    assert [len(part.samples) for part in parts] == [4, 4]
    assert np.concatenate([part.samples for part in parts]).tolist() == batch.samples.tolist()
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.cat([part.labels for part in parts]).tolist() == [0, 1] * 4
    with pytest.raises(UserError, match=r"accumulation = 3 cannot take the 4 real-fake pairs .* multiple of 6 for"):
        batch.split(3)


@pytest.mark.parametrize("loss", [{"triplet": "batch_all", "triplet_weight": 1.0}, {"alignment_weight": 0.1}])
def test_losses_over_pairs_are_not_cut(loss: dict[str, Any]) -> None:
    losses = replace(RECIPE.losses, **loss)
    with pytest.raises(UserError, match=r"see the whole batch.* set it to 1 and activation_checkpointing to true"):
        replace(RECIPE, losses=losses, accumulation=2)
    assert replace(RECIPE, losses=losses).accumulation == 1


@pytest.mark.parametrize("method", ["masm", "effort", "lora", "layernorm", "full", "probe"])
def test_activations_that_are_computed_twice_change_nothing(method: str) -> None:
    adapter = replace(ADAPTER, method=method, targets=("q", "k", "v", "fc1"))
    frames, validation = two_methods(make_frames(48, 1)), two_methods(make_frames(24, 2))
    recipe = replace(RECIPE, epochs=1, losses=ALL_LOSSES)
    trainers, calls = [], []
    for twice in (False, True):
        detector, count = make_detector(adapter), Counter[bool]()
        first: nn.Module = next(iter(detector.backbone.blocks))
        first.register_forward_pre_hook(lambda *_, count=count: count.update([torch.is_grad_enabled()]))
        trainer = Trainer(detector, replace(recipe, activation_checkpointing=twice), frames, validation)
        trainer.run_epoch()
        trainers.append(trainer)
        calls.append(count[True])
    once, again = trainers
    assert calls[1] == (calls[0] if method == "probe" else 2 * calls[0])  # of a frozen block nothing is kept
    for name, value in trainable(once).items():  # masm computes its inputs again in any case, by another formula
        torch.testing.assert_close(trainable(again)[name], value, rtol=1e-3, atol=1e-5)
    assert again.history == [pytest.approx(line, rel=1e-6) for line in once.history]


def test_bfloat16_learns_the_same_within_its_rounding() -> None:
    """The curve of the loss to two per cent, in weights, outputs and gradients of float32."""
    single, half = (trained(replace(RECIPE, precision=precision)) for precision in ("float32", "bfloat16"))
    losses = [[line["loss"] for line in trainer.history] for trainer in (single, half)]
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    batch = next(half._batches())
    assert {value.dtype for value in half._outputs(batch)} == {torch.float32}
    half._backward(batch)
    assert {value.dtype for value in gradients(half).values()} == {torch.float32}


def test_bfloat16_reaches_the_blocks() -> None:
    trainer = make_trainer(replace(RECIPE, precision="bfloat16"))
    seen = []
    block: nn.Module = next(iter(trainer.detector.backbone.blocks))
    block.mlp.fc2.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer._outputs(next(trainer._batches()))
    trainer._validate()
    assert seen[0] == torch.bfloat16
    assert set(seen[1:]) == {torch.float32}  # validation sees what will be served
