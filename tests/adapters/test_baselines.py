from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from masm.adapters import adapt, merge
from masm.errors import UserError
from tests.adapters.models import LAYOUTS, adapter, gradients, perturb, tiny_vit

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
BASELINES = ["probe", "full", "layernorm", "lora", "effort"]


def trainable(model: nn.Module) -> dict[str, int]:
    return {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}


def clip_large() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_large_patch14_clip_224", num_classes=0)


@pytest.mark.parametrize(("name", "targets"), LAYOUTS.items())
@pytest.mark.parametrize("method", BASELINES)
def test_starts_as_pretrained_learns_and_merges(method: str, name: str, targets: tuple[str, ...]) -> None:
    model = tiny_vit(name=name)
    plain = {name: type(module) for name, module in model.named_modules()}
    attributes = vars(model).keys()
    keys = model.state_dict().keys()
    pretrained = model(IMAGES)
    adapt(model, adapter(method=method, targets=targets))
    assert (model(IMAGES) - pretrained).norm() <= 1e-5 * pretrained.norm()

    perturb(model)
    moved = model(IMAGES)
    assert method == "probe" or (moved - pretrained).norm() > 1e-4 * pretrained.norm()
    merged = merge(model)
    assert {name: type(module) for name, module in merged.named_modules()} == plain
    assert merged.state_dict().keys() == keys
    assert vars(merged).keys() == attributes
    assert (merged(IMAGES) - moved).norm() <= 1e-5 * moved.norm()


@pytest.mark.parametrize(
    ("method", "changes", "parameters"),
    [
        ("effort", {}, 196_704),  # 96 x (1024 + 1 + 1024)
        ("layernorm", {}, 102_400),  # 50 x 2 x 1024
        ("probe", {}, 0),
        ("lora", {"rank": 2, "targets": ("proj",)}, 24 * 2 * 2 * 1024),
        ("lora", {"rank": 2, "targets": ("q", "k", "v")}, 24 * 6 * (1024 + 3 * 1024)),
        ("masm", {"rank": 2, "subspaces": 3, "targets": ("fc1",)}, 24 * 6 * (1024 + 1 + 4096)),
    ],
)
def test_trainable_parameters_on_clip_large(method: str, changes: dict[str, object], parameters: int) -> None:
    model = clip_large()
    adapt(model, adapter(method=method, **changes), initialise=False)
    assert sum(trainable(model).values()) == parameters


def test_full_trains_all() -> None:
    model = tiny_vit()
    adapt(model, adapter(method="full"))
    assert all(value.requires_grad for value in model.parameters())


def test_layernorm_trains_scales_and_shifts_alone() -> None:
    model = tiny_vit()
    adapt(model, adapter(method="layernorm"))
    expected = {f"{norm}.{kind}" for norm in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2",
                                              "norm") for kind in ("weight", "bias")}  # fmt: skip
    assert trainable(model).keys() == expected


def test_layernorm_without_norms_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no normalisation layer"):
        adapt(nn.Linear(3, 3), adapter(method="layernorm"))


def test_effort_is_the_weight_with_its_smallest_triplet_free() -> None:
    """Against a plain model whose weights are rebuilt from NumPy's decomposition, outputs and gradients."""
    reference = tiny_vit()
    model = copy.deepcopy(reference)
    layers = adapt(model, adapter(method="effort", rank=7, subspaces=5, targets=("fc1",)))  # which it has no use for
    assert len(layers) == 2 * 4
    leaves: dict[str, list[torch.Tensor]] = {}
    weights: dict[str, torch.Tensor] = {}
    reference.double()
    for name, layer in layers.items():
        plain = reference.get_submodule(name.rsplit(".", 1)[0] if "qkv" in name else name).weight.detach()
        part = "qkv".find(name[-1]) if "qkv" in name else None
        own = (plain if part is None else plain.chunk(3)[part]).numpy()
        U, S, Vh = np.linalg.svd(own)
        one = layer.subspaces[0]
        sign = np.sign(U[:, -1] @ one.U.detach().numpy()[:, 0])  # a triplet is free in its sign
        leaves[name] = [torch.tensor(value).requires_grad_() for value in (sign * U[:, -1], S[-1], sign * Vh[-1])]
        semantic = torch.from_numpy((U[:, :-1] * S[:-1]) @ Vh[:-1])
        u, s, v = leaves[name]
        weights[name] = semantic + s * torch.outer(u, v)
    rebuilt = {}
    for block in ("blocks.0", "blocks.1"):
        rebuilt[f"{block}.attn.qkv.weight"] = torch.cat([weights[f"{block}.attn.qkv.{part}"] for part in "qkv"])
        rebuilt[f"{block}.attn.proj.weight"] = weights[f"{block}.attn.proj"]
    expected = torch.func.functional_call(reference, rebuilt, IMAGES.double())
    found = model(IMAGES)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    for name, layer in layers.items():
        for gradient, leaf in zip(gradients(layer.subspaces[0]), leaves[name], strict=True):
            error = (gradient.flatten().double() - leaf.grad.flatten()).norm()
            assert error <= 1e-4 * leaf.grad.norm() + 1e-6


def test_lora_is_the_weight_plus_b_times_a_and_drawn_by_its_seed() -> None:
    models = [tiny_vit() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        adapt(model, adapter(method="lora", targets=("proj",)), seed=seed)
    same, other = (torch.equal(a, b) for a, b in (
        (models[0].blocks[0].attn.proj.lora_A.default.weight, models[k].blocks[0].attn.proj.lora_A.default.weight)
        for k in (1, 2)))  # fmt: skip
    assert (same, other) == (True, False)
    perturb(models[0])
    layer = models[0].blocks[1].attn.proj
    weight = layer.base_layer.weight + layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(merge(models[0]).blocks[1].attn.proj.weight, weight)


def test_lora_on_a_part_of_a_fused_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"lora updates blocks\.0\.attn\.qkv as a whole: name all of q, k, v"):
        adapt(tiny_vit(), adapter(method="lora", targets=("q", "v")))


@pytest.mark.parametrize("method", BASELINES)
def test_runs_in_bfloat16_autocast(method: str) -> None:
    model = tiny_vit()
    adapt(model, adapter(method=method))
    exact = model(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(IMAGES)
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()
