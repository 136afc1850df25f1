from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from masm.adapters import LayerMask, MaskSettings, penalty
from masm.backbones import Backbone
from masm.detector import Detector
from masm.errors import UserError
from masm.losses import classification_loss
from tests.adapters.models import ARGUMENTS, adapter, perturb, tiny_vit

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 0, 1])
SEPARABLE = IMAGES * torch.tensor([0.3, 1.0, 0.3, 1.0]).reshape(4, 1, 1, 1)
METHODS = ["masm", "effort", "lora", "layernorm", "full", "probe"]
CARD = {"crop": {"detector": "given", "size": 16}, "decisions": {"frame": {"threshold": 0.25}}}


def backbone() -> Backbone:
    return Backbone(tiny_vit(), (0.1, 0.5, 0.3), (0.2, 0.9, 0.7), "vit_tiny_patch16_224", ARGUMENTS)


def detector(seed: int = 0, **changes: object) -> Detector:
    return Detector.build(backbone(), adapter(**changes), seed).eval()


def step(model: Detector, mask: LayerMask, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> None:
    optimizer.zero_grad()
    classification_loss(model(images), LABELS).backward()
    mask.observe()
    if model.layers:
        penalty(model.layers, 1.0, 1.0).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    mask.silence(optimizer)
    optimizer.step()
    mask.decide()


def train(model: Detector, steps: int, images: torch.Tensor = IMAGES) -> None:
    mask = LayerMask(model.layers, MaskSettings("adaptive", "batch", "quantile", 0.5, 2, 0.9))
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-2, 1e-2, 0.1))
    for _ in range(steps):
        step(model, mask, optimizer, images)


def test_logits_are_those_of_the_normalised_backbone_and_head() -> None:
    model = detector()
    normalised = (IMAGES.double().numpy() - np.reshape((0.1, 0.5, 0.3), (3, 1, 1))) / np.reshape(
        (0.2, 0.9, 0.7), (3, 1, 1)
    )
    features = tiny_vit()(torch.from_numpy(normalised).float())
    torch.testing.assert_close(model.embed(IMAGES), features, rtol=1e-4, atol=1e-5)
    expected = features @ model.head.weight[0] + model.head.bias
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert model(IMAGES).shape == (4,)


def test_logits_are_float32_in_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert detector()(IMAGES).dtype == torch.float32


def test_head_follows_the_seed() -> None:
    torch.manual_seed(1)
    first = detector(seed=5)
    torch.manual_seed(2)
    assert torch.equal(first.head.weight, detector(seed=5).head.weight)
    assert not torch.equal(first.head.weight, detector(seed=6).head.weight)


def test_building_leaves_the_backbone_as_it_is() -> None:
    given = backbone()
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    train(Detector.build(given, adapter(), 0), 1)
    after = given.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_parameter_groups_hold_every_trainable_parameter_once() -> None:
    model = detector()
    factors, head = model.parameter_groups(1e-3, 2e-3, 0.5)
    assert (factors["lr"], factors["weight_decay"]) == (1e-3, 0.0)
    assert (head["lr"], head["weight_decay"]) == (2e-3, 0.5)
    found = [id(value) for group in (factors, head) for value in group["params"]]
    assert sorted(found) == sorted(id(value) for value in model.parameters() if value.requires_grad)


@pytest.mark.parametrize("method", METHODS)
def test_what_learns_moves_and_nothing_else(method: str) -> None:
    model = detector(method=method)
    groups = model.parameter_groups(1e-3, 2e-3, 0.5)
    learning = {id(value) for group in groups for value in group["params"]}
    assert learning == {id(value) for value in model.parameters() if value.requires_grad}
    named = {name for name, value in model.named_parameters() if id(value) in learning}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, 2)
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == named


def test_layernorm_head_sees_features_of_length_one() -> None:
    model = detector(method="layernorm")
    plain = detector(method="probe").embed(IMAGES)
    features = model.embed(IMAGES)
    torch.testing.assert_close(features, plain / plain.square().sum(dim=1, keepdim=True).sqrt())
    torch.testing.assert_close(model.merged().embed(IMAGES), features)


def test_lora_starts_by_the_seed() -> None:
    def drawn(seed: int) -> torch.Tensor:
        return detector(seed=seed, method="lora").backbone.get_parameter("blocks.0.mlp.fc1.lora_A.default.weight")

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


def test_probe_trains_its_head_alone() -> None:
    model = detector(method="probe")
    assert len(model.parameter_groups(1e-3, 2e-3, 0.5)) == 1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_subspaces_learn_what_the_probe_cannot() -> None:
    losses = {}
    for method in ("masm", "probe"):
        model = detector(method=method)
        train(model, 60, SEPARABLE)
        losses[method] = classification_loss(model(SEPARABLE), LABELS).item()
    assert losses["masm"] < 0.5 * losses["probe"]


@pytest.mark.parametrize("method", ["masm", "effort"])
def test_shares_are_those_of_detectors_built_with_a_pretrained_subspace(tmp_path: Path, method: str) -> None:
    """Against detectors whose factors are put back one by one in the saved file."""
    model = detector(method=method)
    perturb(model)
    model.save(tmp_path / "detector", CARD)
    tensors = load_file(tmp_path / "detector" / "model.safetensors")
    start = load_start(method)
    subspaces = {"masm": 3, "effort": 1}[method]
    changes = []
    for index in range(subspaces):
        chosen = {name: start[name] for name in start if f".subspaces.{index}." in name}
        assert len(chosen) == {"masm": 2 * 6, "effort": 2 * 4}[method]
        save_file({**tensors, **chosen}, tmp_path / "detector" / "model.safetensors")
        changes.append(model(IMAGES) - Detector.load(tmp_path / "detector").eval()(IMAGES))
    expected = torch.stack(changes, dim=1)
    expected = expected / expected.abs().sum(dim=1, keepdim=True)
    before = model(IMAGES)
    found = model.subspace_shares(IMAGES)
    assert found.shape == (4, subspaces)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(model(IMAGES), before)


def load_start(method: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in detector(method=method).state_dict().items()}


def test_shares_are_zero_where_nothing_was_learned() -> None:
    assert torch.equal(detector().subspace_shares(IMAGES), torch.zeros(4, 3))


@pytest.mark.parametrize("method", ["probe", "lora"])
def test_shares_need_subspaces(method: str) -> None:
    with pytest.raises(UserError, match=f"method {method} has no artifact subspaces"):
        detector(method=method).subspace_shares(IMAGES)


@pytest.mark.parametrize(
    "changes", [{"targets": ("q", "fc2"), "grouping": "contiguous"}, *({"method": name} for name in METHODS)]
)
def test_loaded_detector_gives_the_same_bits(tmp_path: Path, changes: dict[str, object]) -> None:
    model = detector(**changes)
    perturb(model)
    model.save(tmp_path / "detector", CARD)
    loaded = Detector.load(tmp_path / "detector").eval()
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert (loaded.architecture.name, loaded.adapter, loaded.card) == (
        "vit_tiny_patch16_224",
        model.adapter,
        CARD,
    )


def test_loaded_detector_trains_on_as_the_saved_one(tmp_path: Path) -> None:
    model = detector()
    train(model, 3)
    model.save(tmp_path / "detector", CARD)
    loaded = Detector.load(tmp_path / "detector").eval()
    train(model, 4)
    train(loaded, 4)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_merged_detector_is_plain_and_can_be_saved_again(tmp_path: Path, method: str) -> None:
    model = detector(method=method)
    perturb(model)
    model.save(tmp_path / "detector", CARD)
    merged = Detector.load(tmp_path / "detector", merged=True).eval()
    assert merged.layers == {}
    assert merged.backbone.state_dict().keys() == tiny_vit().state_dict().keys()
    torch.testing.assert_close(merged(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    merged.save(tmp_path / "merged", merged.card)
    again = Detector.load(tmp_path / "merged").eval()
    assert torch.equal(again(IMAGES), merged(IMAGES))
    assert again.card == CARD


def test_folder_holds_two_files_and_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "detector"
    detector(seed=1).save(folder, CARD)
    (folder / "left-over").touch()
    latest = detector(seed=2)
    latest.save(folder, CARD)
    assert sorted(path.name for path in folder.iterdir()) == ["detector.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["detector"]
    assert torch.equal(Detector.load(folder).head.weight, latest.head.weight)
    description = json.loads((folder / "detector.json").read_text())
    assert description["classes"] == ["real", "fake"]
    assert {"masm", "torch", "timm"} <= description["versions"].keys()


def test_card_that_is_no_json_leaves_the_former_folder(tmp_path: Path) -> None:
    model = detector()
    model.save(tmp_path / "detector", CARD)
    with pytest.raises(TypeError):
        model.save(tmp_path / "detector", {"crop": object()})
    assert Detector.load(tmp_path / "detector").card == CARD


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, folder / "model.safetensors")


def with_a_stray_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "stray": torch.zeros(1)}, folder / "model.safetensors")


def with_another_rank(folder: Path) -> None:
    description = json.loads((folder / "detector.json").read_text())
    description["adapter"]["rank"] = 1
    (folder / "detector.json").write_text(json.dumps(description))


def without_adapter(folder: Path) -> None:
    description = json.loads((folder / "detector.json").read_text())
    del description["adapter"]
    (folder / "detector.json").write_text(json.dumps(description))


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_a_tensor, "head.bias"),
        (with_a_stray_tensor, "stray"),
        (with_another_rank, r"was not made .* shape of .*blocks\.0\.attn\.qkv\.q.* is \(6, 49\), not \(3, 49\)"),
        (cut_short, "damaged"),
        (without_adapter, "'adapter'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "detector.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "detector.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "detector.json").write_text("[]"), "does not describe a detector"),
    ],
)
def test_damaged_folder_is_one_clear_error(tmp_path: Path, damage: object, said: str) -> None:
    detector().save(tmp_path / "detector", CARD)
    damage(tmp_path / "detector")
    with pytest.raises(UserError, match=said):
        Detector.load(tmp_path / "detector")
