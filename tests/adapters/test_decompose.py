from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masm.adapters.decompose import artifact_order, split


@settings(max_examples=40)
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 20),
    subspaces=st.integers(1, 4),
    rank=st.integers(1, 4),
    grouping=st.sampled_from(["contiguous", "interleaved"]),
    seed=st.integers(0, 100),
)
def test_parts_add_up_to_the_weight(m: int, n: int, subspaces: int, rank: int, grouping: str, seed: int) -> None:
    total = min(subspaces * rank, min(m, n)) // rank * rank
    weight = np.random.default_rng(seed).normal(size=(m, n))
    parts = split(torch.from_numpy(weight), total // rank, rank, grouping)

    artifacts = (parts.U * parts.s).numpy() @ parts.V.numpy().T
    np.testing.assert_allclose(parts.semantic.numpy() + artifacts, weight, atol=1e-12)
    values = np.linalg.svd(weight, compute_uv=False)
    np.testing.assert_allclose(np.sort(parts.s.numpy())[::-1], values[len(values) - total :], atol=1e-12)
    kept = np.linalg.svd(parts.semantic.numpy(), compute_uv=False)
    np.testing.assert_allclose(kept[: len(values) - total], values[: len(values) - total], atol=1e-12)


def test_groups_take_runs_or_turns() -> None:
    assert artifact_order(10, 2, 3, "contiguous").tolist() == [4, 5, 6, 7, 8, 9]
    assert artifact_order(10, 2, 3, "interleaved").tolist() == [4, 6, 8, 5, 7, 9]


@pytest.mark.parametrize("grouping", ["contiguous", "interleaved"])
def test_each_group_is_in_descending_order(grouping: str) -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(12, 9)))
    groups = split(weight, 2, 3, grouping).s.reshape(2, 3)
    assert bool((groups.diff(dim=1) < 0).all())
