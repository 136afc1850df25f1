"""Checkpoints of FSFM's form with random weights, and its forward pass in plain float64 operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

NAME = "test_vit"  # timm's smallest: 6 blocks of width 64, 2 heads, patches of 16 px
WIDTH, DEPTH, HEADS, PATCH = 64, 6, 2, 16
MEAN = (0.5482207536697388, 0.42340534925460815, 0.3654651641845703)
STD = (0.2789176106452942, 0.2438540756702423, 0.23493893444538116)

Weights = dict[str, Tensor]


def drawn(seed: int, shapes: dict[str, tuple[int, ...]]) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def encoder(side: int = 4, width: int = WIDTH, depth: int = DEPTH, hidden: int = 3 * WIDTH) -> Weights:
    """What every FSFM checkpoint has, for images of `side` x `side` patches."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, side * side + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (width,),
    }
    for index in range(depth):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{index}.{name}"] = shape
    weights = drawn(0, shapes)
    return weights | {"cls_token": 20 * weights["cls_token"]}  # so that a mean with it is another one


def pretrained(weights: Weights) -> dict[str, object]:
    """A checkpoint of the pretraining, with all of its heads."""
    heads = {
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "mask_token": (1, 1, 32),
        "decoder_pos_embed": (1, 17, 32),
        "decoder_embed.weight": (32, WIDTH),
        "decoder_blocks.0.attn.qkv.weight": (96, 32),
        "rep_decoder_embed.weight": (32, WIDTH),
        "rep_decoder_pos_embed": (1, 17, 32),
        "projector.0.weight": (8, WIDTH),
        "predictor.0.weight": (8, 8),
    }
    return {"model": weights | drawn(1, heads), "epoch": 400}


def fine_tuned(weights: Weights) -> dict[str, object]:
    """A checkpoint with a head of two classes, fake first."""
    shapes = {"fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,), "head.weight": (2, WIDTH), "head.bias": (2,)}
    return {"model": weights | drawn(2, shapes), "epoch": 9}


def features(
    images: Tensor,
    weights: Weights,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    pooling: str = "patches",
) -> Tensor:
    """Features (B, D) in float64; `pooling` "all" and "class" are what FSFM does not do."""
    value = {name: tensor.double() for name, tensor in weights.items()}
    shift, scale = (torch.tensor(colour, dtype=torch.float64).reshape(1, 3, 1, 1) for colour in (mean, std))
    patches = functional.unfold((images.double() - shift) / scale, PATCH, stride=PATCH).transpose(1, 2)
    kernel = value["patch_embed.proj.weight"].flatten(1)
    tokens = patches @ kernel.T + value["patch_embed.proj.bias"]
    tokens = torch.cat([value["cls_token"].expand(len(images), -1, -1), tokens], dim=1) + value["pos_embed"]
    for index in range(DEPTH):
        tokens = block(tokens, {k.split(".", 2)[2]: v for k, v in value.items() if k.startswith(f"blocks.{index}.")})
    pooled = {"patches": tokens[:, 1:].mean(dim=1), "all": tokens.mean(dim=1), "class": tokens[:, 0]}[pooling]
    return normalised(pooled, value.get("fc_norm.weight", torch.ones(())), value.get("fc_norm.bias", torch.zeros(())))


def block(tokens: Tensor, value: Weights) -> Tensor:
    count, length, width = tokens.shape
    inner = normalised(tokens, value["norm1.weight"], value["norm1.bias"])
    query, key, values = (
        part.reshape(count, length, HEADS, -1).transpose(1, 2)
        for part in (inner @ value["attn.qkv.weight"].T + value["attn.qkv.bias"]).chunk(3, dim=-1)
    )
    attention = (query @ key.transpose(-1, -2) / (width // HEADS) ** 0.5).softmax(dim=-1)
    mixed = (attention @ values).transpose(1, 2).reshape(count, length, width)
    tokens = tokens + mixed @ value["attn.proj.weight"].T + value["attn.proj.bias"]
    inner = normalised(tokens, value["norm2.weight"], value["norm2.bias"])
    hidden = inner @ value["mlp.fc1.weight"].T + value["mlp.fc1.bias"]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return tokens + hidden @ value["mlp.fc2.weight"].T + value["mlp.fc2.bias"]


def normalised(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight + bias
