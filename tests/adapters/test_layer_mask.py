"""Scores against NumPy in float64, and what a mask must guarantee during training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from masm.adapters import LayerMask, MaskSettings, SubspaceLinear
from masm.errors import UserError
from tests.adapters.models import decomposed, perturb, random_linear

Layers = dict[str, SubspaceLinear]
INTERVAL = 12


def mask_settings(**changes: object) -> MaskSettings:
    values = {
        "kind": "adaptive",
        "over": "batch",
        "threshold_kind": "quantile",
        "threshold": 0.5,
        "interval": INTERVAL,
        "momentum": 0.8,
    }
    return MaskSettings(**{**values, **changes})


def make_layers() -> Layers:
    return {
        "a": decomposed(random_linear(8, 6, 0), 3, 1),
        "b": decomposed(random_linear(7, 9, 1), 2, 2),
    }


def set_gradients(layers: Layers, rng: np.random.Generator, signal: dict[tuple[str, int], float]) -> None:
    """Noise of unit variance around a constant, which is `signal` for a (layer, subspace) and else 0."""
    for name, layer in layers.items():
        for k, one in enumerate(layer.subspaces):
            for parameter in one.parameters():
                noise = rng.normal(size=tuple(parameter.shape)) + signal.get((name, k), 0.0)
                parameter.grad = torch.from_numpy(noise).float()


def gradients(layers: Layers) -> list[np.ndarray]:
    """The gradient of every subspace as one float64 vector."""
    return [
        np.concatenate([p.grad.double().numpy().ravel() for p in one.parameters()])
        for layer in layers.values()
        for one in layer.subspaces
    ]


def score(observed: np.ndarray, weights: np.ndarray) -> float:
    """bias^2 / variance of gradients (B, d) under weights (B,) that add up to one."""
    mean = weights @ observed
    variance = weights @ ((observed - mean) ** 2).sum(axis=1)
    bias = max((mean**2).sum() - variance * (weights**2).sum(), 0.0)
    return bias / variance


@pytest.mark.parametrize("kind", ["static", "adaptive"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_scores_are_those_of_the_definition(kind: str, offset: float) -> None:
    layers, rng = make_layers(), np.random.default_rng(0)
    mask = LayerMask(layers, mask_settings(kind=kind))
    signal = {("a", 1): 0.3 + offset, ("b", 0): 1.0}
    observed = []
    for _ in range(INTERVAL - 1):
        set_gradients(layers, rng, signal)
        mask.observe()
        observed.append(gradients(layers))
    age = np.arange(INTERVAL - 1)[::-1]
    weights = np.ones(INTERVAL - 1) if kind == "static" else 0.8**age
    expected = [score(np.stack(one), weights / weights.sum()) for one in zip(*observed, strict=True)]
    found = [value for values in mask.scores().values() for value in values]
    np.testing.assert_allclose(found, expected, rtol=2e-3 if offset else 1e-4, atol=1e-5)


def score_over_methods(observed: dict[str, np.ndarray], weights: np.ndarray) -> float:
    """bias^2 / variance of the mean gradients of some methods, from their gradients (B, d)."""
    means = np.stack([weights @ gradients for gradients in observed.values()])
    variance = ((means - means.mean(axis=0)) ** 2).sum(axis=1).mean()
    bias = max((means.mean(axis=0) ** 2).sum() - variance / len(means), 0.0)
    return bias / variance


@pytest.mark.parametrize("kind", ["static", "adaptive"])
def test_scores_over_methods_are_those_of_the_definition(kind: str) -> None:
    layers, rng = make_layers(), np.random.default_rng(0)
    mask = LayerMask(layers, mask_settings(kind=kind, over="method", interval=100))
    observed: dict[str, list[list[np.ndarray]]] = {"swap": [], "reenact": [], "edit": []}
    for _ in range(5):
        for shift, method in enumerate(observed):
            set_gradients(layers, rng, {("a", 1): 0.6, ("b", 0): float(shift)})
            mask.observe(method)
            observed[method].append(gradients(layers))
    weights = np.ones(5) if kind == "static" else 0.8 ** np.arange(5)[::-1]
    expected = [
        score_over_methods(
            {method: np.stack([step[index] for step in steps]) for method, steps in observed.items()},
            weights / weights.sum(),
        )
        for index in range(5)
    ]
    found = [value for values in mask.scores().values() for value in values]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def observe_methods(layers: Layers, mask: LayerMask, specific: tuple[str, int], seed: int) -> None:
    """One batch of each of two methods: all subspaces agree but `specific`, which turns round between them."""
    rng = np.random.default_rng(seed)
    for method, sign in (("swap", 1.0), ("reenact", -1.0)):
        places = [(name, k) for name, layer in layers.items() for k in range(len(layer.subspaces))]
        set_gradients(layers, rng, {place: 3.0 * (sign if place == specific else 1.0) for place in places})
        mask.observe(method)


def test_over_methods_what_serves_one_forgery_alone_is_masked() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(over="method", threshold=0.2))
    observe_methods(layers, mask, ("a", 1), seed=0)
    assert mask.decide()
    assert mask.free == {"a": [True, False, True], "b": [True, True]}


def test_over_methods_a_decision_waits_for_all_of_them() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(over="method"))
    observe_methods(layers, mask, ("a", 1), seed=0)
    mask.observe("swap")
    assert not mask.decide()
    mask.observe("reenact")
    assert mask.decide()


def test_static_over_methods_takes_interval_gradients() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(kind="static", over="method", threshold=0.8))
    for seed in range(INTERVAL // 2):
        assert mask.calibrating
        observe_methods(layers, mask, ("a", 1), seed)
        mask.decide()
    assert not mask.calibrating


def test_over_methods_one_method_is_refused() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(over="method"))
    set_gradients(layers, np.random.default_rng(0), {})
    mask.observe("swap")
    with pytest.raises(UserError, match=r"mask\.over = 'method' .* only 'swap'"):
        mask.decide()


def test_effective_number_of_gradients_of_a_long_running_mean() -> None:
    """(1 + momentum) / (1 - momentum) in the limit: pure noise then has a bias of about 0."""
    layers = make_layers()
    mask = LayerMask(layers, mask_settings())
    set_gradients(layers, np.random.default_rng(0), {})
    for _ in range(100):
        mask.observe()
    assert 1 / mask.state_dict()["batch/squared_weights"].item() == pytest.approx(1.8 / 0.2, rel=1e-6)


def run_interval(layers: Layers, mask: LayerMask, signal: dict[tuple[str, int], float], seed: int = 0) -> bool:
    """Observe one interval, deciding after each step; whether the mask changed at its end."""
    rng = np.random.default_rng(seed)
    for step in range(INTERVAL):
        set_gradients(layers, rng, signal)
        mask.observe()
        changed = mask.decide()
        assert not changed or step == INTERVAL - 1
    return changed


def test_quantile_frees_the_best_and_one_of_every_layer() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(threshold=0.6))  # 2 of the 5
    assert mask.free == {"a": [True] * 3, "b": [True] * 2}
    assert run_interval(layers, mask, {("a", 0): 3.0, ("a", 2): 3.0, ("b", 1): 1.0})
    assert mask.free == {"a": [True, False, True], "b": [False, True]}


@pytest.mark.parametrize(("threshold", "free"), [(0.0, 5), (1.0, 2)])
def test_quantile_limits(threshold: float, free: int) -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(threshold=threshold))
    run_interval(layers, mask, {("a", 1): 1.0})
    assert sum(sum(values) for values in mask.free.values()) == free


def test_absolute_threshold_compares_scores() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(threshold_kind="absolute", threshold=1.0))
    run_interval(layers, mask, {("a", 0): 3.0, ("a", 2): 3.0})
    best = mask.scores()["b"].index(max(mask.scores()["b"]))
    assert mask.free == {"a": [True, False, True], "b": [index == best for index in range(2)]}


def test_mask_is_decided_anew_from_gradients_of_masked_subspaces_too() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(threshold=0.8, momentum=0.5))
    run_interval(layers, mask, {("a", 0): 3.0})
    assert mask.free["a"] == [True, False, False]
    run_interval(layers, mask, {("a", 2): 3.0}, seed=1)
    assert mask.free["a"] == [False, False, True]


def test_static_mask_takes_whole_layers_once() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(kind="static", threshold=0.8))
    assert mask.calibrating
    assert run_interval(layers, mask, {("b", 1): 3.0})
    assert not mask.calibrating
    assert mask.free == {"a": [False] * 3, "b": [True] * 2}
    assert not run_interval(layers, mask, {("a", 0): 9.0}, seed=1)
    assert mask.free == {"a": [False] * 3, "b": [True] * 2}


def test_no_mask_frees_everything_and_keeps_no_statistics() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(kind="none", threshold=1.0))
    assert not run_interval(layers, mask, {("a", 0): 9.0})
    assert mask.free == {"a": [True] * 3, "b": [True] * 2}
    assert "batch/mean" not in mask.state_dict()


def test_without_layers_there_is_nothing_to_decide() -> None:
    mask = LayerMask({}, mask_settings(kind="static"))
    mask.observe()
    assert not mask.calibrating
    assert not mask.decide()
    assert mask.free == mask.scores() == {}


def test_ties_go_to_the_earlier_subspace() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings(threshold=0.6))
    for one in (one for layer in layers.values() for one in layer.subspaces):
        for parameter in one.parameters():
            parameter.grad = torch.zeros_like(parameter)
    for _ in range(INTERVAL):
        mask.observe()
        mask.decide()
    assert mask.free == {"a": [True, True, False], "b": [True, False]}


def test_two_workers_with_the_same_gradients_hold_the_same_mask() -> None:
    workers = [(layers := make_layers(), LayerMask(layers, mask_settings(threshold=0.6))) for _ in range(2)]
    for seed in range(5):
        for layers, mask in workers:
            run_interval(layers, mask, {("a", seed % 3): 0.2}, seed)
        assert workers[0][1].free == workers[1][1].free


def train(layers: Layers, mask: LayerMask, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    """Steps as the training loop takes them, with gradients that come from nowhere."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        set_gradients(layers, rng, {("a", 0): 2.0, ("b", 0): 2.0})
        mask.observe()
        mask.silence(optimizer)
        optimizer.step()
        mask.decide()


def adamw(layers: Layers, fused: bool = True) -> torch.optim.Optimizer:
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    return torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1, fused=fused)


def snapshot(layers: Layers, name: str, k: int) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in layers[name].subspaces[k].parameters()]


@pytest.mark.parametrize("fused", [True, False])
def test_masked_subspaces_do_not_move_in_100_steps_with_momentum_and_decay(fused: bool) -> None:
    layers = make_layers()
    mask, optimizer = LayerMask(layers, mask_settings(threshold=1.0)), adamw(layers, fused)
    train(layers, mask, optimizer, INTERVAL, seed=0)  # all have moved, and have momentum, by now
    assert mask.free == {"a": [True, False, False], "b": [True, False]}
    masked = [("a", 1), ("a", 2), ("b", 1)]
    before = {place: snapshot(layers, *place) for place in masked}
    moving = snapshot(layers, "a", 0)
    train(layers, mask, optimizer, 100, seed=1)
    for place in masked:
        for was, now in zip(before[place], snapshot(layers, *place), strict=True):
            assert torch.equal(was, now)
    assert not torch.equal(moving[0], snapshot(layers, "a", 0)[0])


def test_optimizer_state_is_kept_while_masked_and_dropped_when_freed() -> None:
    layers = make_layers()
    mask, optimizer = LayerMask(layers, mask_settings(threshold=1.0, momentum=0.5)), adamw(layers)
    train(layers, mask, optimizer, INTERVAL, seed=0)
    masked, kept = layers["a"].subspaces[1].factors, layers["a"].subspaces[0].factors
    assert optimizer.state[masked]["step"] == INTERVAL
    run_interval(layers, mask, {("a", 1): 9.0})
    assert mask.free["a"] == [False, True, False]
    assert masked in optimizer.state
    mask.silence(optimizer)
    assert masked not in optimizer.state
    assert kept in optimizer.state
    optimizer.step()
    mask.silence(optimizer)
    assert optimizer.state[masked]["step"] == 1


@pytest.mark.parametrize("stop", [5, INTERVAL, INTERVAL + 3])
def test_resumed_mask_decides_as_the_uninterrupted_one(stop: int) -> None:
    layers = make_layers()
    first, resumed = LayerMask(layers, mask_settings()), LayerMask(layers, mask_settings())
    rng = np.random.default_rng(0)
    for step in range(4 * INTERVAL):
        if step == stop:
            resumed.load_state_dict(first.state_dict())
        set_gradients(layers, rng, {("a", step // INTERVAL % 3): 0.5})
        for mask in (first, resumed)[: 1 + (step >= stop)]:
            mask.observe()
            mask.decide()
    assert first.free == resumed.free
    assert first.scores() == resumed.scores()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in first.state_dict().items())


def test_state_is_a_copy() -> None:
    layers = make_layers()
    mask = LayerMask(layers, mask_settings())
    run_interval(layers, mask, {})
    state = mask.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    run_interval(layers, mask, {("a", 0): 3.0}, seed=1)
    mask.load_state_dict(state)
    run_interval(layers, mask, {("a", 0): 3.0}, seed=1)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("other", [{"a": (8, 6, 2, 1)}, {"a": (8, 6, 3, 1), "b": (7, 8, 2, 2)}])
def test_state_of_other_settings_is_refused(other: dict[str, tuple[int, int, int, int]]) -> None:
    layers = {name: decomposed(random_linear(m, n), *group) for name, (m, n, *group) in other.items()}
    mask = LayerMask(layers, mask_settings())
    run_interval(layers, mask, {})
    with pytest.raises(UserError, match="adapter settings that it was made with"):
        LayerMask(make_layers(), mask_settings()).load_state_dict(mask.state_dict())


def test_observes_real_gradients_in_bfloat16_autocast() -> None:
    layer = decomposed(random_linear(8, 6), 2, 2)
    perturb(layer)
    mask = LayerMask({"layer": layer}, mask_settings())
    for seed in range(3):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).float().square().mean().backward()
        mask.observe()
    assert mask.state_dict()["batch/mean"].dtype == torch.float32
    assert all(value > 0 for value in mask.scores()["layer"])
