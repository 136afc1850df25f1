"""Small vision transformers and perturbed layers that the adapters' tests share."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from masm.adapters import AdapterSettings, SubspaceLinear
from masm.adapters.decompose import split
from masm.adapters.subspace import ArtifactSubspace

ARGUMENTS = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
ALL_TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")
GATED_TARGETS = ("q", "k", "v", "proj", "fc1_g", "fc1_x", "fc2")

LAYOUTS = {
    "vit_base_patch16_clip_224": ALL_TARGETS,
    "vit_small_patch14_dinov2": ALL_TARGETS,  # LayerScale
    "vit_giant_patch14_dinov2": GATED_TARGETS,  # the gate's and the other matrix packed in one
    "vit_small_patch16_dinov3": ALL_TARGETS,  # rotary positions, no bias of qkv
    "vit_little_patch16_reg4_gap_256": ALL_TARGETS,  # q and k normalised
    "eva_giant_patch14_224": ALL_TARGETS,  # q and v have biases beside the fused layer
    "eva02_base_patch14_224": GATED_TARGETS,  # nothing fused
    "beit_base_patch16_224": ALL_TARGETS,
}
"""timm models of every layout of a block, and the matrices in it."""


def tiny_vit(seed: int = 0, name: str = "vit_tiny_patch16_224") -> nn.Module:
    """A two-block ViT of width 24 for 16 px images, every parameter drawn at random."""
    model = timm.create_model(name, num_classes=0, **ARGUMENTS)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def adapter(**changes: object) -> AdapterSettings:
    """Settings for `tiny_vit`, but for `changes`."""
    values = {"method": "masm", "rank": 2, "subspaces": 3, "grouping": "interleaved", "targets": ALL_TARGETS}
    return AdapterSettings(**{**values, **changes})


def random_linear(out_features: int, in_features: int, seed: int = 0) -> nn.Linear:
    """A plain linear layer with normal weights."""
    linear = nn.Linear(in_features, out_features)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(linear.weight, generator=generator)
    nn.init.normal_(linear.bias, generator=generator)
    return linear


def decomposed(linear: nn.Linear, subspaces: int, rank: int, grouping: str = "interleaved") -> SubspaceLinear:
    """`linear` with artifact subspaces, at its start."""
    layer = SubspaceLinear(linear, subspaces, rank).to(linear.weight.dtype)
    layer.initialise(split(linear.weight, subspaces, rank, grouping))
    return layer


def perturb(module: nn.Module, seed: int = 1, std: float = 0.1) -> None:
    """Move every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn(parameter.shape, generator=generator)


def gradients(subspace: ArtifactSubspace) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of U (m, r), s (r,) and V (n, r)."""
    rows = subspace.factors.grad
    return rows[:, : subspace.out_features].T, rows[:, -1], rows[:, subspace.out_features : -1].T
