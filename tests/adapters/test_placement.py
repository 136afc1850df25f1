from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from masm.adapters import SubspaceLinear, adapt, adapted_layers, merge
from masm.adapters.subspace import FusedProjection
from masm.errors import UserError
from tests.adapters.models import LAYOUTS, adapter, perturb, tiny_vit

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("grouping", ["contiguous", "interleaved"])
@pytest.mark.parametrize("targets", [("q",), ("k", "v"), ("proj", "fc2"), ("q", "k", "v", "proj", "fc1", "fc2")])
def test_adapted_model_starts_as_the_pretrained_one(grouping: str, targets: tuple[str, ...]) -> None:
    model = tiny_vit()
    expected = model(IMAGES)
    layers = adapt(model, adapter(grouping=grouping, targets=targets))
    assert len(layers) == 2 * len(targets)
    assert (model(IMAGES) - expected).norm() <= 1e-5 * expected.norm()


def test_layers_are_named_by_their_place() -> None:
    layers = adapt(tiny_vit(), adapter(targets=("q", "v", "fc1")))
    assert list(layers) == [
        f"blocks.{i}.{place}" for i in range(2) for place in ("attn.qkv.q", "attn.qkv.v", "mlp.fc1")
    ]


def test_untargeted_parts_of_the_fused_projection_stay_plain() -> None:
    model = tiny_vit()
    fused = model.blocks[0].attn.qkv
    adapt(model, adapter(targets=("k",)))
    parts = model.blocks[0].attn.qkv
    assert isinstance(parts, FusedProjection)
    assert type(parts["q"]) is nn.Linear
    assert torch.equal(parts["v"].weight, fused.weight[48:])
    assert torch.equal(parts["v"].bias, fused.bias[48:])


def test_fused_projection_without_bias() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, embed_dim=24, depth=1, num_heads=3, qkv_bias=False
    ).eval()
    expected = model(IMAGES)
    adapt(model, adapter(targets=("q",)))
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merge(model)(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_gradients_land_in_the_factors_alone() -> None:
    model = tiny_vit()
    adapt(model, adapter())
    model(IMAGES).square().sum().backward()
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    assert with_gradient == {name for name, value in model.named_parameters() if ".subspaces." in name}
    assert len(with_gradient) == 2 * 6 * 3


def test_merged_model_is_plain_timm_and_leaves_the_adapted_one_alone() -> None:
    model = tiny_vit()
    plain = {name: type(module) for name, module in model.named_modules()}
    adapt(model, adapter())
    perturb(model)
    merged = merge(model)
    assert {name: type(module) for name, module in merged.named_modules()} == plain
    assert merged.state_dict().keys() == tiny_vit().state_dict().keys()
    expected = model(IMAGES)
    assert (merged(IMAGES) - expected).norm() <= 1e-5 * expected.norm()
    assert len(adapted_layers(model)) == 12


@pytest.mark.parametrize("changes", [{"method": "probe"}, {"rank": 0}, {"subspaces": 0}])
def test_no_rank_is_the_probe(changes: dict[str, object]) -> None:
    model = tiny_vit()
    expected = model(IMAGES)
    assert adapt(model, adapter(**changes)) == {}
    assert not any(value.requires_grad for value in model.parameters())
    assert torch.equal(model(IMAGES), expected)


def test_full_rank_leaves_nothing_semantic() -> None:
    model = tiny_vit()
    expected = model(IMAGES)
    layers = adapt(model, adapter(rank=24, subspaces=1))
    assert max(float(layer.semantic.abs().max()) for layer in layers.values()) < 1e-6
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_rank_above_the_limit_names_layer_and_limit() -> None:
    with pytest.raises(UserError, match=r"5 subspaces of rank 5 .* 24 singular values of blocks\.0\.attn\.qkv\.q"):
        adapt(tiny_vit(), adapter(rank=5, subspaces=5))


def test_target_that_matches_nothing_is_named() -> None:
    model = tiny_vit()
    model.blocks[1].mlp.fc1 = nn.Identity()
    with pytest.raises(UserError, match=r"target fc1 matches nothing in blocks\.1 .*q, k, v, proj, fc2: "):
        adapt(model, adapter())


def test_target_of_another_layout_is_named() -> None:
    with pytest.raises(UserError, match=r"target fc1 .* blocks\.0 \(EvaBlock\), which has q, .* fc1_g, fc1_x, fc2: "):
        adapt(tiny_vit(name="eva02_base_patch14_224"), adapter())


def test_packed_gate_that_cannot_be_split_is_named() -> None:
    model = tiny_vit(name="vit_giant_patch14_dinov2")
    model.blocks[1].mlp.fc1 = nn.Linear(24, 31)
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1 has 31 outputs, which is not 2 equal parts"):
        adapt(model, adapter(targets=("fc1_g",)))


@pytest.mark.parametrize(("name", "targets"), LAYOUTS.items())
def test_every_layout_starts_as_pretrained_learns_and_merges(name: str, targets: tuple[str, ...]) -> None:
    model = tiny_vit(name=name)
    plain = {name: type(module) for name, module in model.named_modules()}
    pretrained = model(IMAGES)
    layers = adapt(model, adapter(targets=targets))
    assert len(layers) == 2 * len(targets)
    assert (model(IMAGES) - pretrained).norm() <= 1e-5 * pretrained.norm()

    model(IMAGES).square().sum().backward()
    assert all(value.grad.norm() > 0 for value in model.parameters() if value.requires_grad)
    perturb(model)
    moved = model(IMAGES)
    assert (moved - pretrained).norm() > 1e-3 * pretrained.norm()

    merged = merge(model)
    assert {name: type(module) for name, module in merged.named_modules()} == plain
    assert merged.state_dict().keys() == tiny_vit(name=name).state_dict().keys()
    assert (merged(IMAGES) - moved).norm() <= 1e-5 * moved.norm()


@pytest.mark.parametrize("name", ["vit_giant_patch14_dinov2", "eva02_base_patch14_224"])
def test_the_gate_is_the_matrix_that_goes_through_the_activation(name: str) -> None:
    """Without its bias and weight, a SiLU gate is shut: nothing comes through the block's MLP but fc2's bias."""
    model = tiny_vit(name=name)
    adapt(model, adapter(targets=("fc1_g",), subspaces=1, rank=24))
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        for layer in (module for module in mlp.modules() if isinstance(module, SubspaceLinear)):
            for value in (layer.semantic, layer.bias, layer.subspaces[0].s):
                value.zero_()
        x = mlp(torch.randn(2, 3, 24))
    silent = mlp.fc2(mlp.norm(torch.zeros(2, 3, mlp.fc2.in_features)))
    torch.testing.assert_close(x, silent)


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no transformer blocks"):
        adapt(nn.Linear(3, 3), adapter())


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "not finite"), (float("inf"), "not finite")])
def test_weight_that_is_not_finite_is_named(value: float, said: str) -> None:
    model = tiny_vit()
    model.blocks[1].mlp.fc2.weight.data[0, 0] = value
    with pytest.raises(UserError, match=rf"blocks\.1\.mlp\.fc2 .*{said}"):
        adapt(model, adapter())


def test_weight_of_zeros_is_named() -> None:
    model = tiny_vit()
    model.blocks[0].attn.proj.weight.data.zero_()
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj is zero everywhere"):
        adapt(model, adapter())


def test_fused_projection_that_cannot_be_split_is_named() -> None:
    model = tiny_vit()
    model.blocks[0].attn.qkv = nn.Linear(24, 71)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv has 71 outputs"):
        adapt(model, adapter())


def test_runs_in_bfloat16_autocast() -> None:
    model = tiny_vit()
    adapt(model, adapter())
    perturb(model, std=0.02)
    exact = model(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(IMAGES)
    assert (rounded.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
def test_needs_torch_timm_and_safetensors_alone() -> None:
    """The library part must import where nothing of the platform is installed."""
    blocked = ["ray", "mlflow", "cv2", "pydantic", "pandas", "sklearn", "pyarrow", "dvc", "kornia", "optuna", "peft"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "import masm.adapters, masm.losses, masm.detector, masm.backbones"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
