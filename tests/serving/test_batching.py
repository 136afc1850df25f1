"""Batches over requests, with a model that takes as long as the test lets it."""

from __future__ import annotations

import threading
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest

from masm.serving.batching import Batcher
from masm.serving.scorer import Scorer
from tests.serving.workspace import SIZE, save, tiny_detector

PATIENCE = 60


class Held(Scorer):
    """A scorer whose passes wait until they are let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.let_go, self.begun = threading.Event(), threading.Event()

    def logits(self, crops: np.ndarray) -> np.ndarray:
        self.begun.set()
        assert self.let_go.wait(PATIENCE)
        return super().logits(crops)


@pytest.fixture
def scorer(tmp_path: Path) -> Held:
    save(tiny_detector(1), tmp_path / "detector")
    return Held(tmp_path / "detector")


@pytest.fixture
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)


def test_what_comes_while_a_pass_computes_is_the_next_one(scorer: Held, crops: np.ndarray) -> None:
    passes: list[int] = []
    batcher = Batcher(4, 0.001, passes.append)
    first = batcher.logit(scorer, crops[0])
    assert scorer.begun.wait(PATIENCE)
    rest = []
    for crop in crops[1:]:
        rest.append(batcher.logit(scorer, crop))
        threading.Event().wait(0.005)  # longer apart than a crop waits for others
    scorer.let_go.set()
    logits = [each.result(PATIENCE) for each in (first, *rest)]
    np.testing.assert_allclose(logits, scorer.logits(crops), atol=1e-5)
    assert passes == [1, 4, 4]


def test_two_models_have_passes_of_their_own(scorer: Held, crops: np.ndarray, tmp_path: Path) -> None:
    save(tiny_detector(2), tmp_path / "other")
    other = Scorer(tmp_path / "other")
    scorer.let_go.set()
    batcher = Batcher(9, 0.5, lambda _: None)
    mixed = [scorer if number % 2 else other for number in range(9)]
    logits = [batcher.logit(own, crop) for own, crop in zip(mixed, crops, strict=True)]
    expected = [own.logits(crop[None])[0] for own, crop in zip(mixed, crops, strict=True)]
    np.testing.assert_allclose([each.result(PATIENCE) for each in logits], expected, atol=1e-5)


def test_a_failed_pass_fails_its_requests_alone_and_cancelled_ones_are_left_out(
    scorer: Held, crops: np.ndarray
) -> None:
    passes: list[int] = []
    batcher = Batcher(2, 0.001, passes.append)
    failing = batcher.logit(scorer, crops[0, :, :, :2])  # two colours
    assert scorer.begun.wait(PATIENCE)
    others = [batcher.logit(scorer, crop) for crop in crops[:3]]
    assert others[1].cancel()
    scorer.let_go.set()
    assert isinstance(failing.exception(PATIENCE), RuntimeError)
    assert not wait([others[0], others[2]], PATIENCE).not_done
    assert others[0].result() == pytest.approx(scorer.logits(crops[:1])[0], abs=1e-5)
    assert passes == [1, 1]
