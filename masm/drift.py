"""Whether a detector still sees what it was validated on: scores and embeddings of a batch against a reference.

The reference is written beside the detector's weights at the end of training: scores of validation frames, and their
embeddings along directions that were found in training frames. Frames of one recording are alike, so that each
recording counts as one observation, however many frames it gave.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.stats import chi2, kstwo

from masm.data.augment import to_float
from masm.data.frames import Frames
from masm.data.stored import Images, decoded, in_order, pick
from masm.detector import Detector
from masm.errors import UserError

REFERENCE = "reference.safetensors"
"""The file's name in a detector's folder."""
FRAMES = 2000
"""The most frames that are looked at for each part of a reference: it takes seconds, and the file is small."""
COMPONENTS = 8
"""Directions in which embeddings are compared."""
BINS = 10
"""Of the population stability index: deciles of the reference."""


@dataclass(frozen=True)
class Sample:
    """What a detector made of some frames.

    Attributes:
        scores: (n,) in [0, 1], before calibration.
        recordings: (n,) numbers; frames of one recording have the same.
        embeddings: (n, D); None where they are not known.
    """

    scores: np.ndarray
    recordings: np.ndarray
    embeddings: np.ndarray | None = None


@dataclass(frozen=True)
class Reference:
    """What a detector made of validation frames.

    Attributes:
        scores: (n,) in [0, 1].
        recordings: (n,) numbers.
        mean: (D,) that is taken off an embedding.
        components: (k, D) directions of length 1, the first with the most variance.
        projections: (n, k) of the frames' embeddings on these.
    """

    scores: np.ndarray
    recordings: np.ndarray
    mean: np.ndarray
    components: np.ndarray
    projections: np.ndarray

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Coordinates (n, k) of embeddings (n, D)."""
        return (embeddings - self.mean) @ self.components.T


@dataclass(frozen=True)
class Comparison:
    """One distribution of a batch beside the reference's; it has drifted where `value` is above `limit`."""

    what: str
    statistic: str
    value: float
    limit: float

    @property
    def drifted(self) -> bool:
        """Whether chance does not explain the difference."""
        return self.value > self.limit


def make_reference(detector: Detector, training: Frames, validation: Frames, batch_size: int) -> Reference:
    """The reference of a detector, best with merged weights.

    Directions are the principal components of training frames, since those of the validation frames themselves would
    spread these wider than any others (there may be fewer frames than dimensions).
    """
    known = observe(detector, training, batch_size).embeddings
    sample = observe(detector, validation, batch_size)
    assert known is not None
    assert sample.embeddings is not None
    mean = known.mean(axis=0)
    components = np.linalg.svd(known - mean, full_matrices=False)[2][:COMPONENTS]
    projections = (sample.embeddings - mean) @ components.T
    return Reference(sample.scores, sample.recordings, mean, components, projections)


def observe(detector: Detector, frames: Frames, batch_size: int) -> Sample:
    """Scores and embeddings of at most FRAMES frames, evenly spread.

    A recording is what was filmed: a real video and the fakes made of it are one.
    """
    rows = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    embeddings, scores = _forward(detector, pick(frames.images, rows), batch_size)
    return Sample(scores, frames.sources[rows], embeddings)


@torch.inference_mode()
def _forward(detector: Detector, images: Images, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, D) and scores (n,), float64."""
    detector.eval()
    parts = [
        detector.embed(to_float(pixels.to(detector.device)))
        for pixels in decoded(images, in_order(len(images), batch_size))
    ]
    embeddings = torch.cat(parts)
    scores = torch.sigmoid(detector.classify(embeddings).double())
    return embeddings.double().cpu().numpy(), scores.cpu().numpy()


def write_reference(folder: Path, reference: Reference) -> None:
    """Put a reference into a detector's folder.

    Scores keep their float64: near 1, where a sure detector's are, float32 would round them to others, and the very
    same frames would count as drifted.
    """
    tensors = {field.name: np.ascontiguousarray(getattr(reference, field.name)) for field in fields(Reference)}
    partial = folder / f".{REFERENCE}.partial-{os.getpid()}"
    save_file(tensors, partial)
    os.replace(partial, folder / REFERENCE)


def read_reference(folder: Path) -> Reference:
    """The reference of a detector's folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / REFERENCE
    try:
        return Reference(**load_file(path))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {REFERENCE}: it was trained before there was one; train it again."
        ) from None
    except (SafetensorError, TypeError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch the model again.") from None


def compare(reference: Reference, sample: Sample, psi: float, significance: float) -> list[Comparison]:
    """Hold a batch against the reference: its scores, and its embeddings where they are known.

    A limit is what chance exceeds in a share of `significance` / number of comparisons of batches of this size that
    have not drifted (Bonferroni), or less often.

    Args:
        reference: of the detector.
        sample: the batch.
        psi: the least stability index that counts; 0.2 is customary.
        significance: of all comparisons together.

    Raises:
        UserError: the batch is empty, or has embeddings of another length.
    """
    _check(reference, sample)
    weights, expected = recording_weights(sample.recordings), recording_weights(reference.recordings)
    sizes = len(np.unique(sample.recordings)), len(np.unique(reference.recordings))
    columns = {"scores": (sample.scores, reference.scores)}
    if sample.embeddings is not None:
        projected = reference.project(sample.embeddings)
        columns |= {
            f"embeddings, component {number + 1}": (projected[:, number], reference.projections[:, number])
            for number in range(len(reference.components))
        }
    level = significance / (len(columns) + 1)
    index = stability_index(sample.scores, reference.scores, weights, expected)
    limit = max(psi, chance_stability_index(level, *sizes))
    distance = chance_distance(level, *sizes)
    return [
        Comparison("scores", "PSI", index, limit),
        *(
            Comparison(what, "KS", largest_distance(mine, theirs, weights, expected), distance)
            for what, (mine, theirs) in columns.items()
        ),
    ]


def _check(reference: Reference, sample: Sample) -> None:
    if not len(sample.scores):
        raise UserError("no face was scored: there is nothing to compare with the reference.")
    if sample.embeddings is not None and sample.embeddings.shape[1] != len(reference.mean):
        raise UserError(
            f"the embeddings have {sample.embeddings.shape[1]} values, the model's {len(reference.mean)}: they are of "
            "another model."
        )


def frames_of(known: Sample | Reference) -> str:
    """How much there is, in words."""
    return f"{len(known.scores)} frames of {len(np.unique(known.recordings))} recordings"


def recording_weights(recordings: np.ndarray) -> np.ndarray:
    """Weights (n,) by which each recording counts as one, shared by its frames."""
    _, number, frames = np.unique(recordings, return_inverse=True, return_counts=True)
    return 1 / frames[number]


def stability_index(
    values: np.ndarray, expected: np.ndarray, weights: np.ndarray, expected_weights: np.ndarray
) -> float:
    """Population stability index over the deciles of `expected`: sum over bins of (p - q) ln(p / q).

    p and q are the shares of weight of `values` and `expected` in a bin, with half an observation added to each bin,
    so that an empty one is not infinite. Values that are alike share a bin.

    Args:
        values, expected: (n,) and (m,).
        weights, expected_weights: of these; they add up to the numbers of observations.
    """
    edges = np.unique(np.quantile(expected, np.linspace(0, 1, BINS + 1)[1:-1]))
    p, q = (
        _shares(np.searchsorted(edges, of), by, len(edges) + 1)
        for of, by in ((values, weights), (expected, expected_weights))
    )
    return float(((p - q) * np.log(p / q)).sum())


def _shares(bins: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    mass = np.bincount(bins, weights, minlength=count) + 0.5
    return mass / mass.sum()


def chance_stability_index(level: float, size: int, reference_size: int) -> float:
    """What the stability index of two samples of one distribution exceeds with probability `level`.

    It is chi-squared with BINS - 1 degrees of freedom, times the sum of the reciprocal sizes (Yurdakul and Naranjo,
    Journal of Risk Model Validation 14(3), 2020).
    """
    return float(chi2.isf(level, BINS - 1) * (1 / size + 1 / reference_size))


def largest_distance(
    values: np.ndarray, expected: np.ndarray, weights: np.ndarray, expected_weights: np.ndarray
) -> float:
    """Two-sample Kolmogorov-Smirnov statistic of weighted values (n,) and (m,)."""
    places = np.concatenate([values, expected])
    mine, theirs = _distribution(values, weights, places), _distribution(expected, expected_weights, places)
    return float(np.abs(mine - theirs).max())


def _distribution(values: np.ndarray, weights: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The share of weight of values that are not above each of the places."""
    order = np.argsort(values)
    below = np.concatenate([[0.0], np.cumsum(weights[order])])
    return below[np.searchsorted(values[order], places, side="right")] / below[-1]


def chance_distance(level: float, size: int, reference_size: int) -> float:
    """What the Kolmogorov-Smirnov statistic of two samples of one distribution exceeds with probability `level`.

    The exact distribution of the one-sample statistic at the effective size, as in `scipy.stats.ks_2samp`.
    """
    effective = max(1, round(size * reference_size / (size + reference_size)))
    return float(kstwo.isf(level, effective))
