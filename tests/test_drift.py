from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy import stats
from scipy.special import expit

from masm import drift
from masm.data.frames import Frames
from masm.data.stored import decode
from masm.drift import (
    REFERENCE,
    Reference,
    Sample,
    chance_distance,
    chance_stability_index,
    compare,
    largest_distance,
    make_reference,
    read_reference,
    recording_weights,
    stability_index,
    write_reference,
)
from masm.errors import UserError
from tests.serving.workspace import random_crop, tiny_detector

RNG = np.random.default_rng


def ones(values: np.ndarray) -> np.ndarray:
    return np.ones(len(values))


def reference_of(scores: np.ndarray, recordings: np.ndarray, width: int = 3) -> Reference:
    """A reference whose embeddings have independent coordinates, `width` of them."""
    projections = RNG(9).normal(size=(len(scores), width))
    return Reference(scores, recordings, np.zeros(width), np.eye(width), projections)


@pytest.mark.parametrize("seed", range(4))
def test_distance_is_that_of_scipy(seed: int) -> None:
    rng = RNG(seed)
    mine, theirs = rng.normal(size=71).round(1), rng.normal(0.3, 1.2, size=134).round(1)  # with ties
    expected = stats.ks_2samp(mine, theirs, method="asymp")
    found = largest_distance(mine, theirs, ones(mine), ones(theirs))
    assert found == pytest.approx(expected.statistic, abs=1e-12)
    limit = chance_distance(float(expected.pvalue), len(mine), len(theirs))
    assert limit == pytest.approx(expected.statistic, abs=1e-9)


def test_weighted_distance_is_that_of_a_repeated_sample() -> None:
    """Weights of 2 and 1 are those of a sample in which values stand twice and once."""
    rng = RNG(0)
    mine, theirs, weights = rng.normal(size=40), rng.normal(0.5, size=60), rng.integers(1, 4, 40)
    expected = stats.ks_2samp(np.repeat(mine, weights), theirs).statistic
    assert largest_distance(mine, theirs, weights.astype(float), ones(theirs)) == pytest.approx(expected, abs=1e-12)


def plain_stability_index(values: np.ndarray, expected: np.ndarray) -> float:
    """By counting each bin in turn."""
    inner = np.quantile(expected, np.arange(1, 10) / 10)
    bounds = [(low, high) for low, high in zip([-np.inf, *inner], [*inner, np.inf], strict=True)]
    total = 0.0
    for low, high in bounds:
        p, q = ((float(sum(low < value <= high for value in of)) + 0.5) / (len(of) + 5.0) for of in (values, expected))
        total += (p - q) * np.log(p / q)
    return total


@pytest.mark.parametrize("shift", [0.0, 0.2, 3.0])
def test_stability_index_counts_the_deciles(shift: float) -> None:
    rng = RNG(1)
    values, expected = rng.normal(shift, size=90), rng.normal(size=203)
    found = stability_index(values, expected, ones(values), ones(expected))
    assert found == pytest.approx(plain_stability_index(values, expected), abs=1e-12)


def test_scores_that_are_all_alike_share_one_bin() -> None:
    same = np.full(50, 0.25)
    assert stability_index(same, same, ones(same), ones(same)) == pytest.approx(0, abs=1e-12)
    moved = stability_index(np.full(50, 0.75), same, ones(same), ones(same))
    assert np.isfinite(moved)
    assert moved > 1


def test_chance_exceeds_the_stability_index_as_often_as_said() -> None:
    rng, level = RNG(2), 0.05
    limit = chance_stability_index(level, 150, 400)
    found = [
        stability_index(rng.random(150), expected, np.ones(150), np.ones(400)) for expected in rng.random((2000, 400))
    ]
    assert np.mean(np.array(found) > limit) == pytest.approx(level, abs=0.02)


def test_a_recording_counts_once() -> None:
    np.testing.assert_allclose(recording_weights(np.array([7, 3, 7, 7, 3, 1])), [1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2, 1])


def recorded(rng: np.random.Generator, recordings: int, frames: int, shift: float = 0.0) -> Sample:
    """Frames of a recording differ little, in scores and in embeddings."""
    own = rng.normal(shift, size=(recordings, 4))
    values = (own[:, None] + 0.1 * rng.normal(size=(recordings, frames, 4))).reshape(-1, 4)
    return Sample(expit(values[:, 0]), np.repeat(np.arange(recordings), frames), values[:, 1:])


def test_frames_of_one_recording_are_no_further_evidence() -> None:
    """Of batches without drift no more are called drifted than `significance`, though their frames are alike."""
    rng, alarms, significance = RNG(3), 0, 0.05
    for _ in range(300):
        known, batch = recorded(rng, 60, 8), recorded(rng, 40, 8)
        assert known.embeddings is not None
        reference = Reference(known.scores, known.recordings, np.zeros(3), np.eye(3), known.embeddings)
        alarms += any(row.drifted for row in compare(reference, batch, 1e-9, significance))
    assert alarms / 300 < 2 * significance


def test_drift_is_found_where_it_is() -> None:
    rng = RNG(4)
    known, moved = recorded(rng, 200, 3), recorded(rng, 150, 3)
    assert known.embeddings is not None
    assert moved.embeddings is not None
    reference = Reference(known.scores, known.recordings, np.zeros(3), np.eye(3), known.embeddings)
    assert not any(row.drifted for row in compare(reference, moved, 0.2, 0.01))
    shifted = moved.embeddings + np.array([0.0, 1.0, 0.0])
    rows = compare(reference, Sample(moved.scores, moved.recordings, shifted), 0.2, 0.01)
    assert [row.what for row in rows if row.drifted] == ["embeddings, component 2"]
    rows = compare(reference, Sample(np.sqrt(moved.scores), moved.recordings), 0.2, 0.01)
    assert [(row.what, row.statistic) for row in rows if row.drifted] == [("scores", "PSI"), ("scores", "KS")]


def test_the_index_that_counts_is_a_setting() -> None:
    rng = RNG(5)
    reference = reference_of(rng.random(4000), np.arange(4000))
    batch = Sample(rng.beta(1.3, 1.0, 4000), np.arange(4000))
    first = compare(reference, batch, 1e-9, 0.01)[0]
    assert first.drifted
    assert not compare(reference, batch, 2 * first.value, 0.01)[0].drifted


def test_batches_that_cannot_be_compared_are_refused() -> None:
    reference = reference_of(RNG(0).random(20), np.arange(20))
    with pytest.raises(UserError, match="no face was scored"):
        compare(reference, Sample(np.empty(0), np.empty(0, int)), 0.2, 0.01)
    with pytest.raises(UserError, match="have 5 values, the model's 3"):
        compare(reference, Sample(np.full(4, 0.5), np.arange(4), np.zeros((4, 5))), 0.2, 0.01)


def frames_of(count: int, key: int) -> Frames:
    numbers = np.arange(count)
    images = [random_crop(key, number) for number in numbers.tolist()]
    landmarks = np.full((count, 5, 2), np.nan, np.float16)
    return Frames(images, numbers % 2, numbers.astype(str), numbers * 0, numbers, numbers // 2, landmarks)


def test_reference_is_what_the_detector_makes_of_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "FRAMES", 12)
    detector, training, validation = tiny_detector(0).eval(), frames_of(20, 1), frames_of(30, 2)
    write_reference(tmp_path, make_reference(detector, training, validation, batch_size=5))
    reference = read_reference(tmp_path)
    rows = np.linspace(0, 29, 12).round().astype(int)
    directions = np.linspace(0, 19, 12).round().astype(int)
    with torch.inference_mode():
        pixels = decode([validation.images[row] for row in rows]).float() / 255
        known = decode([training.images[row] for row in directions]).float() / 255
        scores, embeddings = torch.sigmoid(detector(pixels)).numpy(), detector.embed(pixels).double().numpy()
        basis = detector.embed(known).double().numpy()
    np.testing.assert_allclose(reference.scores, scores, atol=1e-6)
    np.testing.assert_array_equal(reference.recordings, validation.sources[rows])
    # Principal components by another way: eigenvectors of the covariance.
    values, vectors = np.linalg.eigh(np.cov(basis.T))
    expected = (embeddings - basis.mean(axis=0)) @ vectors[:, ::-1][:, : drift.COMPONENTS]
    np.testing.assert_allclose(np.abs(reference.projections), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(reference.project(embeddings), reference.projections, atol=1e-4)
    assert values[-1] > 0
    assert [path.name for path in tmp_path.iterdir()] == [REFERENCE]


def test_frames_of_a_sure_detector_have_not_drifted_from_themselves(tmp_path: Path) -> None:
    """Their logits are near 18 and -18, where float32 has few scores left."""
    rng = RNG(6)
    scores = expit(np.where(rng.random(1000) < 0.5, 1, -1) * rng.normal(18, 2, 1000))
    write_reference(tmp_path, reference_of(scores, np.arange(1000)))
    reference = read_reference(tmp_path)
    np.testing.assert_array_equal(reference.scores, scores)
    assert [row.value for row in compare(reference, Sample(scores, np.arange(1000)), 0.2, 0.01)] == [0.0, 0.0]


def test_folder_without_a_whole_reference_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train it again"):
        read_reference(tmp_path)
    (tmp_path / REFERENCE).write_bytes(b"short")
    with pytest.raises(UserError, match="is damaged"):
        read_reference(tmp_path)
    save_file({field.name: np.zeros(2) for field in fields(Reference)[1:]}, tmp_path / REFERENCE)
    with pytest.raises(UserError, match="is damaged"):
        read_reference(tmp_path)
