from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masm.adapters import adapt
from masm.adapters.cache import KEPT, DecompositionCache, content_key
from masm.adapters.decompose import split
from tests.adapters.models import adapter, tiny_vit


def weight(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def entry(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@settings(max_examples=25)
@given(
    m=st.integers(2, 90),
    n=st.integers(2, 90),
    count=st.integers(1, 90),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_triplets_are_the_smallest_first_time_and_later(
    tmp_path_factory: pytest.TempPathFactory, m: int, n: int, count: int, dtype: torch.dtype
) -> None:
    cache = DecompositionCache(tmp_path_factory.mktemp("cache"))
    count = min(count, m, n)
    W = weight(m, n).to(dtype)
    exact = W.double().numpy()
    values = np.linalg.svd(exact, compute_uv=False)
    for triplets in (cache(W, count), cache(W, count)):
        np.testing.assert_allclose(triplets.s.numpy(), values[len(values) - count :], atol=1e-13 * values[0])
        assert triplets.U.shape == (m, count)
        np.testing.assert_allclose(exact @ triplets.V.numpy(), (triplets.U * triplets.s).numpy(), atol=1e-12)
        np.testing.assert_allclose((triplets.V.T @ triplets.V).numpy(), np.eye(count), atol=1e-12)


def test_one_entry_serves_every_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, W = DecompositionCache(tmp_path), weight(80, 70)
    plain = split(W, 4, 8, "interleaved")
    cache(W, 1)
    monkeypatch.setattr(torch.linalg, "svd", None)  # nothing is left to decompose
    cached = split(W, 4, 8, "interleaved", cache)
    for name in ("semantic", "U", "s", "V"):
        assert torch.equal(getattr(cached, name), getattr(plain, name))
    assert cache(W, KEPT).s.shape == (KEPT,)


def test_more_than_is_kept_replaces_the_entry(tmp_path: Path) -> None:
    cache, W = DecompositionCache(tmp_path), weight(100, 90)
    cache(W, 2)
    assert cache(W, KEPT + 9).s.shape == (KEPT + 9,)
    assert cache(W, 3).s.shape == (3,)
    assert len(list(tmp_path.iterdir())) == 1


def test_key_is_the_content() -> None:
    W = weight(6, 4)
    assert content_key(W) == content_key(W.T.contiguous().T)  # how it lies in memory does not matter
    changed = W.clone()
    changed[5, 3] += 1e-6
    different = [W, changed, W.reshape(4, 6), W.double(), W.view(torch.int32)]
    assert len({content_key(one) for one in different}) == len(different)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def with_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_short, with_a_flipped_bit, lambda path: path.write_bytes(b"")])
def test_damaged_entry_is_made_anew_with_a_warning(tmp_path: Path, damage: object) -> None:
    cache, W = DecompositionCache(tmp_path), weight(20, 30)
    expected = cache(W, 4)
    damage(entry(tmp_path))  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"is damaged: the weight of shape \(20, 30\) is decomposed anew"):
        found = cache(W, 4)
    assert torch.equal(found.s, expected.s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(cache(W, 4).U, expected.U)


def test_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot keep decompositions"):
        assert DecompositionCache(tmp_path / "file")(weight(5, 4), 2).s.shape == (2,)


def _fill(folder: Path, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    cache = DecompositionCache(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.put([float(cache(weight(40, 30, seed), 4).s.sum()) for seed in range(10)])


@pytest.mark.slow
def test_processes_that_fill_it_at_once_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    for others in sums[1:]:
        np.testing.assert_allclose(sums[0], others, rtol=1e-12)
    assert len(list(tmp_path.iterdir())) == 10


def test_an_adapted_model_is_the_same_with_and_without(tmp_path: Path) -> None:
    plain, first, second = tiny_vit(), tiny_vit(), tiny_vit()
    adapt(plain, adapter())
    adapt(first, adapter(), cache=tmp_path)
    adapt(second, adapter(grouping="contiguous", rank=1), cache=tmp_path)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in plain.state_dict().items())
    assert len(list(tmp_path.iterdir())) == 12
