"""The starter's pretraining, with tiny sizes: the real loop on really drawn faces."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.fft import dctn
from scipy.special import erf
from torch.nn.parallel import DistributedDataParallel

from masm.backbones import build_backbone
from masm.data.views import Viewing, Views, drawn_people, make_views
from masm.errors import UserError
from masm.objective import ALONE, Place
from masm.pretraining import (
    BANDS,
    ENERGY_FLOOR,
    TERMS,
    TOKEN_STD,
    MaskedAutoencoder,
    Pretrainer,
    PretrainRecipe,
    TermWeights,
    draw_batch,
    encode,
    learning_rate_share,
    momentum_at,
    normalised,
    whiten_patches,
)

WEIGHTS = TermWeights(region=0.007, alignment=0.1, energy=0.5)
RECIPE = PretrainRecipe(seed=3, steps=30, batch_size=16, lr=1e-3, hidden=0.75, momentum=0.9, weights=WEIGHTS)
ARGUMENTS = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "global_pool": "avg", "fc_norm": False}


@pytest.fixture(scope="module")
def views() -> Views:
    return make_views([Viewing(photo, 4, 32, 8, seed=3) for photo in drawn_people(3, 4, 1)], lambda done: None)


def noise(count: int = 24) -> Views:
    """Views without faces, for what does not depend on them."""
    rng = np.random.default_rng(0)
    return Views(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 8, (count, 16), np.uint8))


def make_pretrainer(views: Views, recipe: PretrainRecipe = RECIPE, place: Place = ALONE, **how: object) -> Pretrainer:
    torch.manual_seed(0)
    encoder = build_backbone("vit_tiny_patch16_224", ARGUMENTS)
    return Pretrainer(encoder, views, recipe, place, **how)  # type: ignore[arg-type]


def run(views: Views, recipe: PretrainRecipe) -> Pretrainer:
    trainer = make_pretrainer(views, recipe)
    while not trainer.finished:
        trainer.step()
    return trainer


def make_model(images: torch.Tensor | None = None) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sample = normalised(noise().images) if images is None else images
    return MaskedAutoencoder(build_backbone("vit_tiny_patch16_224", ARGUMENTS), 0.75, sample, width=16, heads=2)


def test_losses_fall_and_the_seed_fixes_the_weights(views: Views) -> None:
    trainer = run(views, RECIPE)
    losses = np.array(trainer.losses)
    assert losses.shape == (30, 4)
    early, late = losses[:5].mean(0), losses[-5:].mean(0)
    assert (late < early - 0.03).all(), dict(zip(TERMS, late - early, strict=True))
    weights = trainer.model.encoder.state_dict()
    again = run(views, RECIPE).model.encoder.state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    other = run(views, replace(RECIPE, seed=4)).model.encoder.state_dict()
    assert not torch.equal(weights["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    total = sum(losses[:, 1 + i] * weight for i, weight in enumerate((0.007, 0.1, 0.5))) + losses[:, 0]
    assert trainer.mean_losses(10)["total"] == pytest.approx(total[-10:].mean())


def perceptron(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    x = norm(weights, f"{name}.1", linear(weights, f"{name}.0", x), 1e-5)
    return linear(weights, f"{name}.3", gelu(x))


def linear(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: dict[str, np.ndarray], name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def block(weights: dict[str, np.ndarray], name: str, x: np.ndarray, heads: int, epsilon: float) -> np.ndarray:
    """A pre-norm transformer block on one image's tokens (n, D)."""
    tokens, width = x.shape
    qkv = linear(weights, f"{name}.attn.qkv", norm(weights, f"{name}.norm1", x, epsilon))
    q, k, v = qkv.reshape(tokens, 3, heads, width // heads).transpose(1, 2, 0, 3)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    mixed = (attention @ v).transpose(1, 0, 2).reshape(tokens, width)
    x = x + linear(weights, f"{name}.attn.proj", mixed)
    inner = gelu(linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.norm2", x, epsilon)))
    return x + linear(weights, f"{name}.mlp.fc2", inner)


def features_of(weights: dict[str, np.ndarray], name: str, patches: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The encoder's features (1 + kept, D) of one image's patches (n, 3 p^2)."""
    kernel = weights[f"{name}.patch_embed.proj.weight"]
    tokens = patches @ kernel.reshape(len(kernel), -1).T + weights[f"{name}.patch_embed.proj.bias"]
    positions = weights[f"{name}.pos_embed"][0]
    x = np.concatenate([weights[f"{name}.cls_token"][0] + positions[:1], (tokens + positions[1:])[kept]])
    for depth in range(2):
        x = block(weights, f"{name}.blocks.{depth}", x, heads=3, epsilon=1e-6)
    return norm(weights, f"{name}.norm", x, 1e-6)


def test_terms_are_those_of_an_independent_computation(views: Views) -> None:
    """In NumPy and float64, image by image; the slow copy has moved away from the encoder."""
    model = make_model(normalised(views.images))
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.predict.weight.mul_(5)
    images, order, covered = draw_batch(views, model.hidden, replace(RECIPE, batch_size=6), step=0)
    assert covered.any(1).all()
    with torch.no_grad():
        found = model(images, order, covered).numpy()
    weights = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    terms = []
    for image, places, region in zip(images.double().numpy(), order.numpy(), covered.numpy(), strict=True):
        patches = image.reshape(3, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4).reshape(16, 192)
        visible, hidden = places[:4], places[4:]
        features = features_of(weights, "encoder", patches, visible)
        x = linear(weights, "embed", features)
        x = np.concatenate([x, np.repeat(weights["mask_token"][0], 12, 0)])
        x[1:] += weights["positions"][0][places]
        decoded = norm(weights, "decoder.1", block(weights, "decoder.0", x, heads=2, epsilon=1e-6), 1e-5)[1:]
        predicted = linear(weights, "predict", decoded)
        targets = (patches - patches.mean(1, keepdims=True)) / np.sqrt(patches.var(1, ddof=1, keepdims=True) + 1e-4)
        errors = ((predicted[4:, :192] - targets[hidden]) ** 2).mean(1)
        energies = ((predicted[:, 192:] - normalised_energies(weights, image)[places]) ** 2).mean()
        ahead = perceptron(weights, "predictor", perceptron(weights, "projector", features[1:].mean(0)))
        whole = features_of(weights, "target.0", patches, np.arange(16))
        seen = perceptron(weights, "target.1", whole[1:].mean(0))
        cosine = ahead @ seen / np.linalg.norm(ahead) / np.linalg.norm(seen)
        terms.append([errors.mean(), errors[region[hidden]].mean(), -0.5 * cosine, energies])
    np.testing.assert_allclose(found, np.mean(terms, 0), rtol=2e-4)


def log_energies(image: np.ndarray) -> np.ndarray:
    """Log energies (tokens, BANDS) of one image's grey patches."""
    order = np.add.outer(np.arange(8), np.arange(8))
    grey, energies = image.mean(0), np.empty((16, BANDS))
    for token in range(16):
        row, column = 8 * (token // 4), 8 * (token % 4)
        squares = dctn(grey[row : row + 8, column : column + 8], norm="ortho") ** 2
        for band in range(BANDS):
            members = (order > 0) & ((order - 1) * BANDS // 14 == band)
            energies[token, band] = np.log(squares[members].mean() + ENERGY_FLOOR)
    return energies


def normalised_energies(weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    return (log_energies(image) - weights["energy_mean"]) / weights["energy_std"]


def test_energies_are_those_of_the_cosine_transform() -> None:
    """Each band is normalised over all tokens of the images that the model was made with."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = np.stack([log_energies(image) for image in images.numpy().astype(np.float64)])
    expected = (expected - expected.mean((0, 1))) / expected.std((0, 1), ddof=1)
    np.testing.assert_allclose(make_model(images)._energies(images).numpy(), expected, atol=2e-3)


def test_encoder_sees_the_visible_patches_alone(views: Views) -> None:
    """Changing hidden patches changes the targets, never what the encoder computes."""
    encoder = make_model().encoder.eval()
    visible = torch.tensor([[0, 5, 10, 15]])
    first = normalised(views.images[:1])
    second = first.clone()
    second[:, :, :8, 8:] = 0  # patches 1, 2 and 3
    with torch.no_grad():
        assert torch.equal(encode(encoder, first, visible), encode(encoder, second, visible))
        second[:, :, :8, :8] = 0  # patch 0 is seen
        assert not torch.equal(encode(encoder, first, visible), encode(encoder, second, visible))


def test_the_slow_copy_moves_by_its_momentum_and_gets_no_gradient() -> None:
    trainer = make_pretrainer(noise(), replace(RECIPE, steps=5))
    pairs = [(trainer.model.target[0], trainer.model.encoder), (trainer.model.target[1], trainer.model.projector)]
    slow = [[value.clone() for value in copy.parameters()] for copy, _ in pairs]
    for step in range(3):
        trainer.step()
        momentum = 1 - 0.1 * (1 + math.cos(math.pi * step / 4)) / 2
        for (copy, original), before in zip(pairs, slow, strict=True):
            for index, (now, present) in enumerate(zip(copy.parameters(), original.parameters(), strict=True)):
                assert now.grad is None
                before[index] = momentum * before[index] + (1 - momentum) * present.detach()
                torch.testing.assert_close(now, before[index], rtol=1e-4, atol=1e-6)


def test_momentum_rises_along_a_half_cosine_to_one() -> None:
    values = [momentum_at(step, 101, 0.996) for step in range(101)]
    assert values[0] == pytest.approx(0.996)
    assert values[50] == pytest.approx(0.998)
    assert values[100] == 1
    assert all(later > earlier for earlier, later in pairwise(values))


def test_a_mirrored_image_has_its_regions_mirrored(views: Views) -> None:
    """Whatever is covered is one region of the image as it is shown."""
    whole = {image.tobytes(): region for image, region in zip(views.images, views.regions, strict=True)}
    images, _, covered = draw_batch(views, 12, RECIPE, step=1)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    mirrored = 0
    for image, mask in zip(pixels, covered.numpy(), strict=True):
        if (regions := whole.get(image.tobytes())) is None:
            mirrored += 1
            regions = whole[image[:, ::-1].tobytes()].reshape(4, 4)[:, ::-1].ravel()
        assert len(set(regions[mask])) == 1
        assert mask.sum() == (regions == regions[mask][0]).sum()
    assert 0 < mirrored < len(images)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    trainer = make_pretrainer(noise(), replace(RECIPE, steps=8), Place(rank, 2), replicate=DistributedDataParallel)
    while not trainer.finished:
        trainer.step()
    Path(folder, f"{rank}.json").write_text(json.dumps(trainer.losses))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one(tmp_path: Path) -> None:
    """But for the rounding of bf16: each sees half of every batch."""
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = run(noise(), replace(RECIPE, steps=8))
    np.testing.assert_allclose(first, alone.losses, rtol=2e-3, atol=2e-3)


def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=6)
    whole, stopped = run(noise(), recipe), make_pretrainer(noise(), recipe)
    for _ in range(3):
        stopped.step()
    stopped.save(tmp_path)
    resumed = make_pretrainer(noise(), recipe)
    resumed.load(tmp_path)
    assert resumed.seconds == stopped.seconds > 0
    while not resumed.finished:
        resumed.step()
    assert resumed.losses == whole.losses
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(noise(), replace(RECIPE, steps=1)).save(tmp_path)
    encoder = build_backbone("vit_tiny_patch16_224", {**ARGUMENTS, "depth": 3})
    with pytest.raises(UserError, match="another model"):
        Pretrainer(encoder, noise(), RECIPE).load(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights() -> None:
    trainer = make_pretrainer(noise(), replace(RECIPE, steps=4))
    trainer.step()
    with torch.no_grad():
        trainer.model.predict.bias[0] = math.nan
    before = trainer.model.encoder.blocks[0].attn.qkv.weight.clone()
    with pytest.raises(UserError, match="step 1"):
        trainer.step()
    assert torch.equal(trainer.model.encoder.blocks[0].attn.qkv.weight, before)


def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights() -> None:
    """Clipping to a norm would make of one infinity nothing but NaN, while the loss is finite still."""
    trainer = make_pretrainer(noise(), replace(RECIPE, steps=4))
    trainer.step()
    trainer.model.predict.bias.register_hook(lambda gradient: gradient * math.inf)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match=r"norm (inf|nan) at step 1: lower pretrain\.lr"):
        trainer.step()
    assert np.isfinite(trainer.losses).all()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize(("hidden", "count"), [(0.01, 0), (0.99, 16)])
def test_a_share_that_hides_nothing_or_all_is_refused(hidden: float, count: int) -> None:
    with pytest.raises(UserError, match=rf"pretrain\.hidden {hidden} hides {count} of 16 patches"):
        make_pretrainer(noise(), replace(RECIPE, hidden=hidden))


def test_a_checkpoint_knows_its_machine(tmp_path: Path) -> None:
    run(noise(), replace(RECIPE, steps=1)).save(tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert "CPU threads" in progress["machine"]
    (tmp_path / "progress.json").write_text(json.dumps({**progress, "machine": "a GPU of a worker"}))
    loaded = make_pretrainer(noise())
    loaded.load(tmp_path)
    assert loaded.machine == "a GPU of a worker"


def test_targets_are_normalised_patches_in_the_order_of_the_tokens() -> None:
    model = make_model()
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = model._pixels(image)
    patch = image[0, :, 8:16, 16:24].numpy().astype(np.float64).ravel()  # row 1, column 2 of 4
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-4)
    assert targets.shape == (1, 16, 192)
    assert np.allclose(targets[0, 6].numpy(), expected, atol=1e-5)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 200) for step in range(200)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[105] == pytest.approx(0.5 * (1 + math.cos(math.pi * 95 / 190)))
    assert shares[-1] < 1e-3


def test_whitened_patches_have_equal_variances_and_no_correlation() -> None:
    encoder = build_backbone("vit_tiny_patch16_224", ARGUMENTS)
    images = normalised(np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), np.uint8))
    whiten_patches(encoder, images)
    with torch.no_grad():
        tokens = encoder.patch_embed(images)
    covariance = np.cov(tokens.flatten(0, 1).double().numpy().T)
    np.testing.assert_allclose(covariance, TOKEN_STD**2 * np.eye(48), atol=1e-4)
