"""How the starter backbone is made: masked autoencoding of drawn real faces.

Masked autoencoding is He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022): the encoder
sees a quarter of the patches, a small decoder predicts the others, each normalised to its own mean and
variance. Two things are ours, so that the camera's noise, which forensics lives on and which is hundreds of
times weaker than what a photograph shows, is not lost: the patch embedding starts as a whitening, and beside
the pixels the decoder predicts, with a small weight, how much energy every patch has in each band of its cosine
transform. Sizes and schedule are small enough for two CPU cores.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from masm.data.camera import CAMERAS, compress, decompress, expose
from masm.data.faces import CropProfile, Jitter, crop
from masm.data.procedural import draw_face

FIRST_PERSON = 1_000_000  # people from here on are for pretraining alone, so no data set shows one of them
DRAWN_SIZE = 128  # pixels; the face is about half as wide, as in the embedded data sets
VIEWS = 4  # crops of each photograph, each through a camera of its own
MARGINS = (1.1, 1.6)
NOISE = (0.2, 2.0)  # factor on a camera's noise, so that its strength is worth knowing
WHITENED = 1000  # images whose patches the embedding whitens at its start
TOKEN_STD = 0.1  # of each feature of a whitened patch; position embeddings start at 0.02
BANDS = 6  # of the cosine transform, by the sum of both frequencies
ENERGY_WEIGHT = 0.5
ENERGY_FLOOR = 1e-5  # squared amplitude, images in -1..1: a third of a grey level
VARIANCE_FLOOR = 1e-5  # squared amplitude, below which a component is left to be small
VISIBLE = 0.25
WARMUP_SHARE = 0.05
BETAS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 0.05, 1.0


@dataclass(frozen=True)
class PretrainRecipe:
    """One pretraining run on `people` with `photographs` each; `lr` is the peak of the learning rate."""

    seed: int
    people: int
    photographs: int
    steps: int
    batch_size: int
    lr: float


class MaskedAutoencoder(nn.Module):
    """A vision transformer with the small decoder that pretrains it."""

    cosines: Tensor
    bands: Tensor

    def __init__(self, encoder: VisionTransformer, width: int = 128, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        tokens, patch = encoder.patch_embed.num_patches, encoder.patch_embed.patch_size[0]
        self.encoder, self.patch = encoder, patch
        self.embed = nn.Linear(encoder.num_features, width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        blocks = [Block(width, heads, qkv_bias=True) for _ in range(depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.predict = nn.Linear(width, 3 * patch**2 + BANDS)
        self.register_buffer("cosines", cosine_transform(patch))
        self.register_buffer("bands", frequency_bands(patch))

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Mean squared error on the pixels of the hidden patches, plus that on the energies of all; a scalar.

        Args:
            images: (B, 3, S, S), normalised as for the encoder.
            order: (B, tokens) a permutation of the patches for each image; the first quarter stay visible.
        """
        visible = order[:, : round(VISIBLE * order.shape[1])]
        hidden = order[:, visible.shape[1] :]
        features = self.embed(self._encode(images, visible))
        masks = self.mask_token.expand(len(order), hidden.shape[1], -1)
        tokens = torch.cat([features[:, 1:], masks.to(features.dtype)], 1) + _take(self.positions, order)
        decoded = self.decoder(torch.cat([features[:, :1], tokens], 1))
        pixels, energies = self.predict(decoded[:, 1:]).float().tensor_split([-BANDS], dim=-1)
        pixel_error = pixels[:, visible.shape[1] :] - _take(self._pixels(images), hidden)
        energy_error = energies - _take(self._energies(images), order)
        return pixel_error.square().mean() + ENERGY_WEIGHT * energy_error.square().mean()

    def _encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Features (B, 1 + visible, D) of the class token and the visible patches."""
        encoder = self.encoder
        patches = _take(encoder.patch_embed(images) + encoder.pos_embed[:, 1:], visible)
        token = (encoder.cls_token + encoder.pos_embed[:, :1]).expand(len(patches), -1, -1)
        return encoder.norm(encoder.blocks(torch.cat([token, patches], 1)))

    def _energies(self, images: Tensor) -> Tensor:
        """Log energies (B, tokens, BANDS) of the grey patches, normalised over the batch."""
        patches = nn.functional.unfold(images.mean(1, keepdim=True), self.patch, stride=self.patch).transpose(1, 2)
        energy = (patches @ self.cosines.T).square() @ self.bands.T
        logarithm = (energy + ENERGY_FLOOR).log()
        return (logarithm - logarithm.mean((0, 1))) / logarithm.std((0, 1))

    def _pixels(self, images: Tensor) -> Tensor:
        """Patches (B, tokens, 3 p^2), each normalised to mean 0 and variance 1."""
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        centred = patches - patches.mean(-1, keepdim=True)
        return centred / (patches.var(-1, keepdim=True) + 1e-4).sqrt()


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


def draw_views(recipe: PretrainRecipe, size: int) -> Iterator[np.ndarray]:
    """For each person, the crops of `views_of`; drawn in all the processes that the machine has cores."""
    context = multiprocessing.get_context("spawn")  # OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        people = range(FIRST_PERSON, FIRST_PERSON + recipe.people)
        yield from pool.map(views_of, people, [recipe] * recipe.people, [size] * recipe.people, chunksize=8)


def views_of(person: int, recipe: PretrainRecipe, size: int) -> np.ndarray:
    """Crops (photographs x VIEWS, size, size, 3) uint8 of one person, each from a camera drawn by chance."""
    views = []
    for photograph in range(recipe.photographs):
        face = draw_face(recipe.seed, person, photograph, DRAWN_SIZE)
        for view in range(VIEWS):
            rng = np.random.default_rng((recipe.seed, 2, person, photograph, view))
            camera = list(CAMERAS.values())[rng.integers(len(CAMERAS))].scaled(float(rng.uniform(*NOISE)))
            quality = int(rng.integers(camera.quality[0], camera.quality[1] + 1))
            published = decompress(compress(expose(face.image, camera, rng), quality))
            profile = CropProfile("given", size, float(rng.uniform(*MARGINS)), None)
            shift_x, shift_y = rng.normal(0, 0.03, 2)
            views.append(crop(published, face.box, profile, Jitter(shift_x, shift_y, 1.0, False)))
    return np.stack(views)


def pretrain(
    encoder: VisionTransformer,
    images: np.ndarray,
    recipe: PretrainRecipe,
    progress: Callable[[int, float], None],
) -> float:
    """Pretrain an encoder in place; the same recipe gives the same weights on one machine.

    Args:
        encoder: takes images of the crops' size, normalised with mean and std 0.5.
        images: (N, S, S, 3) uint8.
        recipe: steps, batch size, learning rate and seed.
        progress: called after each step with the steps done and the smoothed loss.

    Returns:
        The loss, averaged over about the last hundred steps.
    """
    whiten_patches(encoder, images[:WHITENED])
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = MaskedAutoencoder(encoder).train()
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=recipe.lr, betas=BETAS)
    smoothed = math.nan
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * learning_rate_share(step, recipe.steps)
        batch, order = _draw_batch(images, encoder.patch_embed.num_patches, recipe, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, order)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        value = float(loss.detach())
        smoothed = value if step == 0 else smoothed + (value - smoothed) / min(step + 1, 100)
        progress(step + 1, smoothed)
    return smoothed


@torch.no_grad()
def whiten_patches(encoder: VisionTransformer, images: np.ndarray) -> None:
    """Let the patch embedding start as the whitening of patches (principal components of equal variance).

    Args:
        encoder: with fewer features than a patch has values, the components that vary most are taken.
        images: (n, S, S, 3) uint8.
    """
    projection = encoder.patch_embed.proj
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = nn.functional.unfold(pixels, projection.kernel_size, stride=projection.stride)
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


def _draw_batch(images: np.ndarray, tokens: int, recipe: PretrainRecipe, step: int) -> tuple[Tensor, Tensor]:
    """Images of one step (B, 3, S, S), mirrored by chance, and each one's order of patches (B, tokens)."""
    rng = np.random.default_rng((recipe.seed, 3, step))
    chosen = images[rng.integers(0, len(images), recipe.batch_size)]
    mirrored = rng.random(recipe.batch_size) < 0.5
    chosen[mirrored] = chosen[mirrored, :, ::-1]
    order = np.argsort(rng.random((recipe.batch_size, tokens)), axis=1)
    batch = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch, torch.from_numpy(order)


def _parameter_groups(model: nn.Module) -> Iterable[dict]:
    """Weight decay for matrices alone: not for biases, norms, tokens and positions."""
    matrices = [value for value in model.parameters() if value.ndim in (2, 4)]
    others = [value for value in model.parameters() if value.ndim not in (2, 4)]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, k, D) of (B or 1, n, D) at positions (B, k)."""
    tokens = tokens.expand(len(index), -1, -1)
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
