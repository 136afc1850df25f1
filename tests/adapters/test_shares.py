from __future__ import annotations

import pytest
import torch

from masm.adapters import adapt, restored_subspace, shares
from tests.adapters.models import adapter, perturb, tiny_vit


def test_shares_are_changes_over_the_sum_of_absolute_changes() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0])
    restored = torch.tensor([[1.0, 5.0], [0.0, 0.0], [1.5, 0.75]])
    expected = torch.tensor([[0.25, -0.75], [0.0, 0.0], [-2 / 3, 1 / 3]])
    torch.testing.assert_close(shares(logits, restored), expected)


@pytest.mark.parametrize("grouping", ["contiguous", "interleaved"])
def test_restored_subspace_is_the_pretrained_one_and_comes_back(grouping: str) -> None:
    model = tiny_vit()
    layers = adapt(model, adapter(grouping=grouping))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    perturb(model)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with restored_subspace(layers, 1):
        for name, value in model.state_dict().items():
            assert torch.equal(value, (start if ".subspaces.1." in name else trained)[name])
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_an_error_inside_does_not_leave_it_restored() -> None:
    model = tiny_vit()
    layers = adapt(model, adapter())
    perturb(model)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), restored_subspace(layers, 0):
        raise RuntimeError("inside")
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
