"""How the starter backbone is made: masked autoencoding of faces without a forgery, after FSFM.

Masked autoencoding is He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022): the encoder sees a
quarter of the patches, a small decoder predicts the others, each normalised to its own mean and variance.
From Wang et al., "FSFM: A Generalizable Face Security Foundation Model via Self-Supervised Facial Representation
Learning" (CVPR 2025), come three things: patches are hidden by facial regions (`masm.data.regions`), the region that
is covered whole weighs a little more, and what the visible patches say of the face is drawn towards what a slow copy
of the encoder says of the whole of it. Its authors' code is not used; the heads of that last term are ours, without
a decoder of their own and with layer instead of batch normalisation, so that the number of workers changes nothing.

Two more things are ours, so that the camera's noise, which forensics lives on and which is hundreds of times weaker
than what a photograph shows, is not lost: the patch embedding starts as a whitening, and beside the pixels the
decoder predicts how much energy every patch has in each band of its cosine transform. Sizes and schedule are small
enough for two CPU cores.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from masm.backbones import state_differences
from masm.data.regions import hide_patches
from masm.data.views import Views
from masm.errors import UserError
from masm.objective import ALONE, Place

SAMPLED = 1000  # images whose patches the embedding whitens at its start, and whose energies set the scale of all
TOKEN_STD = 0.1  # of each feature of a whitened patch; position embeddings start at 0.02
BANDS = 6  # of the cosine transform, by the sum of both frequencies
ENERGY_FLOOR = 1e-5  # squared amplitude, images in -1..1: a third of a grey level
VARIANCE_FLOOR = 1e-5  # squared amplitude, below which a component is left to be small
WARMUP_SHARE = 0.05
BETAS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 0.05, 1.0  # FSFM's
TERMS = ("reconstruction", "region", "alignment", "energy")


@dataclass(frozen=True)
class TermWeights:
    """Weights of the loss's terms beside the reconstruction, whose weight is 1: FSFM's two, and ours."""

    region: float
    alignment: float
    energy: float


@dataclass(frozen=True)
class PretrainRecipe:
    """One pretraining run.

    `lr` is the peak of the learning rate, `hidden` the share of the patches that the encoder does not see, and
    `momentum` the share of the slow copy that a step keeps at the start; it rises to 1. `batch_size` is that of all
    workers together.
    """

    seed: int
    steps: int
    batch_size: int
    lr: float
    hidden: float
    momentum: float
    weights: TermWeights


class MaskedAutoencoder(nn.Module):
    """A vision transformer with what pretrains it: a small decoder, the heads of the alignment, and the slow copy.

    Args:
        encoder: timm's, with a class token and the mean of the patches as its feature.
        hidden: share of the patches that it does not see.
        images: (n, 3, S, S) normalised, over which the log energies of a band have mean 0 and variance 1.

    Raises:
        UserError: of so few patches the share is none or all.
    """

    cosines: Tensor
    bands: Tensor
    energy_mean: Tensor
    energy_std: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        hidden: float,
        images: Tensor,
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
    ) -> None:
        super().__init__()
        tokens, patch = encoder.patch_embed.num_patches, encoder.patch_embed.patch_size[0]
        self.encoder, self.patch, self.hidden = encoder, patch, round(hidden * tokens)
        if not 0 < self.hidden < tokens:
            raise UserError(
                f"pretrain.hidden {hidden:g} hides {self.hidden} of {tokens} patches: hide some and leave some."
            )
        self.embed = nn.Linear(encoder.num_features, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        blocks = [Block(width, heads, qkv_bias=True) for _ in range(depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.predict = nn.Linear(width, 3 * patch**2 + BANDS)
        self.projector = _perceptron(encoder.num_features, width)
        self.predictor = _perceptron(width, width)
        self.target = nn.ModuleList(deepcopy([encoder, self.projector])).requires_grad_(False)
        self.register_buffer("cosines", cosine_transform(patch))
        self.register_buffer("bands", frequency_bands(patch))
        energies = self._log_energies(images)
        self.register_buffer("energy_mean", energies.mean((0, 1)))
        self.register_buffer("energy_std", energies.std((0, 1)))

    def forward(self, images: Tensor, order: Tensor, covered: Tensor) -> Tensor:
        """The terms of the loss, unweighted, as `TERMS` names them: (4,), means over the images.

        Squared errors on the hidden patches' pixels, on those of the covered region alone, minus half the cosine
        between the prediction from the visible patches and the slow copy's projection of all of them, and squared
        errors on the energies of all patches.

        Args:
            images: (B, 3, S, S), normalised as for the encoder.
            order: (B, tokens) a permutation of the patches for each image, the visible ones first.
            covered: (B, tokens) bool, the patches of the region that is covered whole.
        """
        visible, hidden = order.tensor_split([order.shape[1] - self.hidden], dim=1)
        features = encode(self.encoder, images, visible)
        pixels, energies = self._decode(features, order)
        errors = (pixels - _take(self._pixels(images), hidden)).square().mean(-1)
        of_region = covered.gather(1, hidden).float()
        region = (errors * of_region).sum(1) / of_region.sum(1).clamp_min(1)
        energy = (energies - _take(self._energies(images), order)).square()
        return torch.stack([errors.mean(), region.mean(), self._alignment(features, images), energy.mean()])

    def update_target(self, momentum: float) -> None:
        """Draw the slow copy towards the present encoder and projector."""
        present = [*self.encoder.parameters(), *self.projector.parameters()]
        get_ema_multi_avg_fn(momentum)(list(self.target.parameters()), present, None)

    def _decode(self, features: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted pixels (B, hidden, 3 p^2) of the hidden patches, and energies (B, tokens, BANDS) of all."""
        features = self.embed(features)
        masks = self.mask_token.expand(len(order), self.hidden, -1)
        tokens = torch.cat([features[:, 1:], masks.to(features.dtype)], 1) + _take(self.positions, order)
        decoded = self.decoder(torch.cat([features[:, :1], tokens], 1))[:, 1:]
        pixels, energies = self.predict(decoded).float().tensor_split([-BANDS], dim=-1)
        return pixels[:, -self.hidden :], energies

    def _alignment(self, features: Tensor, images: Tensor) -> Tensor:
        """Minus half the cosine between what the visible patches predict and what the slow copy sees."""
        encoder, projector = self.target
        with torch.no_grad():
            seen = projector(encode(encoder, images)[:, 1:].mean(1))
        predicted = self.predictor(self.projector(features[:, 1:].mean(1)))
        return -0.5 * nn.functional.cosine_similarity(predicted.float(), seen.float()).mean()

    def _log_energies(self, images: Tensor) -> Tensor:
        """Log energies (B, tokens, BANDS) of the grey patches."""
        patches = nn.functional.unfold(images.mean(1, keepdim=True), self.patch, stride=self.patch).transpose(1, 2)
        return ((patches @ self.cosines.T).square() @ self.bands.T + ENERGY_FLOOR).log()

    def _energies(self, images: Tensor) -> Tensor:
        """Normalised log energies (B, tokens, BANDS)."""
        return (self._log_energies(images) - self.energy_mean) / self.energy_std

    def _pixels(self, images: Tensor) -> Tensor:
        """Patches (B, tokens, 3 p^2), each normalised to mean 0 and variance 1."""
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        centred = patches - patches.mean(-1, keepdim=True)
        return centred / (patches.var(-1, keepdim=True) + 1e-4).sqrt()


class Pretrainer:
    """A masked autoencoder in training.

    The draws of a step follow from seed and step alone, so that any number of workers sees the same images, and a
    run that goes on from a checkpoint the same as one that was never stopped.

    Args:
        encoder: takes images of the views' size, normalised with mean and std 0.5; it is trained in place.
        views: what it learns from; every worker holds the same.
        recipe: the settings of the run.
        place: which share of each batch is this worker's.
        replicate: wraps the model so that backward averages gradients over the group.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        views: Views,
        recipe: PretrainRecipe,
        place: Place = ALONE,
        replicate: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.recipe, self.views, self.place = recipe, views, place
        sample = sample_of(views)
        whiten_patches(encoder, sample)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.model = MaskedAutoencoder(encoder, recipe.hidden, sample).train()
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.model), lr=recipe.lr, betas=BETAS, fused=True)
        self._replica = replicate(self.model)
        self.losses: list[tuple[float, ...]] = []
        """The terms of every step so far, over all workers."""
        self.seconds = 0.0
        """That the steps so far took."""
        self.machine = machine_name(self.device)
        """What they ran on; after `load`, what the first worker of the run ran on."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.mask_token.device

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return len(self.losses) >= self.recipe.steps

    def step(self) -> None:
        """Take the next step.

        Raises:
            UserError: the loss or its gradient is no longer finite; the weights are as before.
        """
        started, recipe, step = time.perf_counter(), self.recipe, len(self.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * learning_rate_share(step, recipe.steps)
        batch = draw_batch(self.views, self.model.hidden, recipe, step, self.place)
        with torch.autocast(self.device.type, torch.bfloat16):
            terms = self._replica(*(tensor.to(self.device) for tensor in batch))
        self.optimizer.zero_grad()
        (terms @ torch.tensor(self._weights, device=self.device)).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM).item()
        self.losses.append(self._averaged(terms.detach()))
        if not np.isfinite([*self.losses[-1], norm]).all():
            raise UserError(
                f"the loss is {self.losses[-1]} and its gradient's norm {norm} at step {step}: lower pretrain.lr; "
                "checkpoints before it are kept."
            )
        self.optimizer.step()
        self.model.update_target(momentum_at(step, recipe.steps, recipe.momentum))
        self.seconds += time.perf_counter() - started

    @property
    def _weights(self) -> tuple[float, ...]:
        return 1.0, *astuple(self.recipe.weights)

    def _averaged(self, terms: Tensor) -> tuple[float, ...]:
        if self.place.world > 1:
            dist.all_reduce(terms)
        return tuple((terms / self.place.world).tolist())

    def mean_losses(self, steps: int = 100) -> dict[str, float]:
        """Each term, averaged over the latest steps, and their weighted sum as `total`."""
        means = np.mean(self.losses[-steps:], axis=0)
        named = dict(zip(TERMS, means.tolist(), strict=True))
        return {**named, "total": float(means @ self._weights)}

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on as if nothing had happened (safetensors and JSON)."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{names[id(parameter)]}/{key}": value for key, value in state.items()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "state.safetensors")
        progress = {"losses": self.losses, "seconds": self.seconds, "machine": machine_name(self.device)}
        (folder / "progress.json").write_text(json.dumps(progress))

    def load(self, folder: Path) -> None:
        """Go on from a folder that `save` wrote.

        Raises:
            UserError: it was written with other settings.
        """
        tensors = load_file(folder / "state.safetensors", device=str(self.device))
        weights = {name.removeprefix("model."): tensors[name] for name in tensors if name.startswith("model.")}
        if differences := state_differences(weights, self.model.state_dict()):
            raise UserError(f"the checkpoint in {folder} is of another model ({differences}): remove it.")
        self.model.load_state_dict(weights)
        parameters = dict(self.model.named_parameters())
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                parameter, key = name.removeprefix("optimizer.").split("/")
                self.optimizer.state[parameters[parameter]][key] = value
        progress = json.loads((folder / "progress.json").read_text())
        self.losses = [tuple(terms) for terms in progress["losses"]]
        self.seconds, self.machine = progress["seconds"], progress["machine"]


def machine_name(device: torch.device) -> str:
    """The GPU's name, or how many threads of which processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU threads ({platform.machine()})"


def encode(encoder: VisionTransformer, images: Tensor, visible: Tensor | None = None) -> Tensor:
    """Features (B, 1 + visible, D) of the class token and the patches at `visible` (B, visible); of all where None."""
    patches = encoder.patch_embed(images) + encoder.pos_embed[:, 1:]
    if visible is not None:
        patches = _take(patches, visible)
    token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(patches), -1, -1)
    return encoder.norm(encoder.blocks(torch.cat([token, patches], 1)))


def cosine_transform(size: int) -> Tensor:
    """The orthonormal two-dimensional DCT-II of flattened patches: (size^2, size^2)."""
    position = torch.arange(size)
    rows = torch.cos(math.pi / size * (position + 0.5) * position[:, None]) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows)


def frequency_bands(size: int) -> Tensor:
    """(BANDS, size^2) weights that average the coefficients of a band; the mean of the patch is in none."""
    order = (torch.arange(size)[:, None] + torch.arange(size)).flatten()
    band = ((order - 1) * BANDS).div(2 * size - 2, rounding_mode="floor")
    members = torch.stack([(band == index).float() for index in range(BANDS)])
    return members / members.sum(1, keepdim=True)


@torch.no_grad()
def whiten_patches(encoder: VisionTransformer, images: Tensor) -> None:
    """Let the patch embedding start as the whitening of patches (principal components of equal variance).

    Args:
        encoder: with fewer features than a patch has values, the components that vary most are taken.
        images: (n, 3, S, S), normalised as for the encoder.
    """
    projection = encoder.patch_embed.proj
    patches = nn.functional.unfold(images, projection.kernel_size, stride=projection.stride)
    values = patches.transpose(1, 2).flatten(0, 1).double()
    variances, components = torch.linalg.eigh(values.T.cov())  # ascending: the last ones vary most
    variances, components = variances[-projection.out_channels :], components[:, -projection.out_channels :]
    weight = TOKEN_STD * components.T / (variances.clamp_min(0) + VARIANCE_FLOOR).sqrt()[:, None]
    projection.weight.copy_(weight.reshape(projection.weight.shape))
    projection.bias.copy_(-weight @ values.mean(0))


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then a cosine to zero."""
    warmup = max(round(WARMUP_SHARE * steps), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def momentum_at(step: int, steps: int, first: float) -> float:
    """Share of the slow copy that a step keeps: from `first` along a half cosine to 1 (Grill et al., "BYOL", 2020)."""
    return 1 - (1 - first) * (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2


def draw_batch(
    views: Views, hidden: int, recipe: PretrainRecipe, step: int, place: Place = ALONE
) -> tuple[Tensor, Tensor, Tensor]:
    """A worker's share of the images of a step, mirrored by chance, and what of them is hidden.

    Returns:
        images (b, 3, S, S), and order and covered (b, tokens) as `hide_patches` gives them.
    """
    rng = np.random.default_rng((recipe.seed, 3, step))
    chosen = rng.integers(0, len(views), recipe.batch_size)
    images, regions = views.images[chosen], views.regions[chosen]
    mirrored = rng.random(recipe.batch_size) < 0.5
    side = math.isqrt(regions.shape[1])
    images[mirrored] = images[mirrored, :, ::-1]
    regions[mirrored] = regions[mirrored].reshape(-1, side, side)[:, :, ::-1].reshape(-1, side**2)
    order, covered = hide_patches(regions, hidden, rng)
    mine = slice(place.rank, None, place.world)
    return normalised(images[mine]), torch.from_numpy(order[mine]), torch.from_numpy(covered[mine])


def sample_of(views: Views) -> Tensor:
    """At most `SAMPLED` images (n, 3, S, S), spread evenly over all and normalised."""
    return normalised(views.images[np.linspace(0, len(views) - 1, min(SAMPLED, len(views)), dtype=int)])


def normalised(images: np.ndarray) -> Tensor:
    """(n, 3, S, S) float32 in -1..1 of (n, S, S, 3) uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two layers, twice as wide as their input in between."""
    width = 2 * inputs
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, outputs))


def _parameter_groups(model: nn.Module) -> Iterable[dict]:
    """Weight decay for matrices alone: not for biases, norms, tokens and positions."""
    learned = [value for value in model.parameters() if value.requires_grad]
    matrices = [value for value in learned if value.ndim in (2, 4)]
    others = [value for value in learned if value.ndim not in (2, 4)]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, k, D) of (B or 1, n, D) at positions (B, k)."""
    tokens = tokens.expand(len(index), -1, -1)
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
