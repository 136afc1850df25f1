"""How far apart embeddings lie, by label, by forgery method and by dataset: in figures, and as a map in 2-D.

Everything here is a pure function of embeddings and of the facts of their frames. Embeddings are taken at length 1,
distances are Euclidean.

- **kNN**: a frame is given the group that is strongest among its NEIGHBOURS nearest frames of other people, each
  neighbour weighed by the inverse of its group's size. Frames of the same person, or of the same video where the
  person is unknown, are no neighbours: what they have in common is the face. Balanced accuracy is the mean over the
  groups of the share of their frames that are given theirs; chance is one over the number of groups.
- **Silhouette** (Rousseeuw 1987, by scikit-learn): the mean over the frames of (b - a) / max(a, b), a being the mean
  distance to the frame's own group and b that to the nearest other one; 1 is far apart, 0 is mixed.

High figures by label are what a detector is for. High figures by dataset mean that the embedding knows where a frame
comes from: its camera, its compression, its crops. Where reals and fakes differ in source, too, the figures by label
then measure the source and not the forgery.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import balanced_accuracy_score, pairwise_distances_chunked, silhouette_score
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from masm.evaluation import clusters
from masm.metrics import area_under_curve, balanced_accuracy

GROUPINGS = ("label", "method", "dataset")
NEIGHBOURS = 5
PRINCIPAL_COMPONENTS = 50
MAP_DECIMALS = 3
PERPLEXITY = 30.0
FEWEST_FOR_TSNE = 91  # more than three times the perplexity; scikit-learn takes that many neighbours of a point


@dataclass(frozen=True)
class GroupingRow:
    """How well the groups of one of GROUPINGS are told apart; NaN is undefined."""

    by: str
    groups: int
    knn_balanced_accuracy: float
    silhouette: float


@dataclass(frozen=True)
class NeighbourRow:
    """Real or fake by kNN: a dataset, or one of its forgery methods against all its reals; NaN is undefined.

    `method` is empty for the whole dataset. Neighbours are sought among all frames, those of other datasets too. The
    AUC's score is the share of fakes among a frame's neighbours, not weighed by the sizes of the classes; the balanced
    accuracy is of the label that they give, each weighed so.
    """

    dataset: str
    method: str
    frames: int
    knn_auc: float
    knn_balanced_accuracy: float


@dataclass(frozen=True)
class Separability:
    """What some embeddings show; of none there are no rows.

    Attributes:
        groupings: one row for each of GROUPINGS.
        datasets: rows for each dataset.
        points: the map: columns sample_id, dataset, method, label, x and y.
    """

    groupings: tuple[GroupingRow, ...]
    datasets: tuple[NeighbourRow, ...]
    points: pd.DataFrame

    def metrics(self) -> dict[str, float]:
        """Flat figures for `dvc metrics` and MLflow; undefined ones are left out."""
        flat = {}
        for grouping in self.groupings:
            flat[f"by_{grouping.by}.knn_balanced_accuracy"] = grouping.knn_balanced_accuracy
            flat[f"by_{grouping.by}.silhouette"] = grouping.silhouette
        for row in self.datasets:
            name = f"{row.dataset}.{row.method}" if row.method else row.dataset
            flat |= {f"{name}.knn_auc": row.knn_auc, f"{name}.knn_balanced_accuracy": row.knn_balanced_accuracy}
        return {name: value for name, value in flat.items() if math.isfinite(value)}


def separability(frames: pd.DataFrame, embeddings: np.ndarray, seed: int) -> Separability:
    """Figures and map of embeddings.

    Args:
        frames: columns sample_id, dataset, method, video_id, identity and label, one row for each embedding.
        embeddings: (n, D), of any length but zero.
        seed: of the map.
    """
    facts = frames[["sample_id", "dataset", "method", "label"]]
    if frames.empty:
        return Separability((), (), facts.assign(x=[], y=[]))
    unit = normalize(embeddings)
    neighbours = nearest_neighbours(unit, clusters(frames))
    groupings = tuple(_grouping_row(by, frames[by].to_numpy(), unit, neighbours) for by in GROUPINGS)
    x, y = project(unit, seed).round(MAP_DECIMALS).T
    return Separability(groupings, tuple(_neighbour_rows(frames, neighbours)), facts.assign(x=x, y=y))


def nearest_neighbours(unit: np.ndarray, people: np.ndarray) -> np.ndarray | None:
    """Rows (n, NEIGHBOURS) of each embedding's nearest ones of other people, in any order.

    None where somebody's frames have fewer others.

    Args:
        unit: (n, D) embeddings of length 1.
        people: (n,) names, see `masm.evaluation.clusters`.
    """
    codes = pd.factorize(people)[0]
    if len(codes) - np.bincount(codes).max(initial=0) < NEIGHBOURS:
        return None

    def nearest(distances: np.ndarray, first: int) -> np.ndarray:
        own = codes[first : first + len(distances), None] == codes
        others = np.where(own, np.inf, distances)
        return np.argpartition(others, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]

    return np.concatenate(list(pairwise_distances_chunked(unit, reduce_func=nearest)))


def _given(groups: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """The group (n,) that each frame is given by its neighbours; of equals the first in sorted order."""
    names, codes = np.unique(groups, return_inverse=True)
    counts = (codes[neighbours][:, :, None] == np.arange(len(names))).sum(axis=1)
    return names[np.argmax(counts / np.bincount(codes), axis=1)]


def _grouping_row(by: str, groups: np.ndarray, unit: np.ndarray, neighbours: np.ndarray | None) -> GroupingRow:
    count = len(np.unique(groups))
    accuracy = silhouette = math.nan
    if count > 1 and neighbours is not None:
        accuracy = float(balanced_accuracy_score(groups, _given(groups, neighbours)))
    if 1 < count < len(groups):
        silhouette = float(silhouette_score(unit, groups))
    return GroupingRow(by, count, accuracy, silhouette)


def _neighbour_rows(frames: pd.DataFrame, neighbours: np.ndarray | None) -> Iterator[NeighbourRow]:
    """Each dataset as a whole, and its forgery methods where it has several."""
    labels = frames["label"].to_numpy()
    undefined = np.full(len(frames), math.nan)
    share, given = undefined, undefined
    if neighbours is not None:
        share, given = labels[neighbours].mean(axis=1), _given(labels, neighbours)
    for dataset, own in frames.assign(share=share, given=given).groupby("dataset", sort=False):
        yield _neighbour_row(str(dataset), "", own)
        methods = own.loc[own["label"] == 1, "method"].unique()
        for method in methods if len(methods) > 1 else ():
            yield _neighbour_row(str(dataset), method, own[(own["label"] == 0) | (own["method"] == method)])


def _neighbour_row(dataset: str, method: str, rows: pd.DataFrame) -> NeighbourRow:
    labels, share, given = (rows[name].to_numpy() for name in ("label", "share", "given"))
    auc = accuracy = math.nan
    if not np.isnan(share).any():
        auc, accuracy = area_under_curve(labels, share), balanced_accuracy(labels, given, 0.5)
    return NeighbourRow(dataset, method, len(rows), auc, accuracy)


def project(unit: np.ndarray, seed: int) -> np.ndarray:
    """Embeddings (n, D) of length 1 in two dimensions, (n, 2).

    By PCA to PRINCIPAL_COMPONENTS and t-SNE (van der Maaten and Hinton 2008), started at the first two components; by
    these two alone where there are too few frames for t-SNE. Near points are near embeddings; distances between
    groups that lie apart, and the axes, mean nothing. On one machine the same embeddings and seed give the same map
    with any number of threads.
    """
    if len(unit) < 2:
        return np.zeros((len(unit), 2))
    with threadpool_limits(1):  # threads add up in any order, and t-SNE makes much of the last digit
        components = min(PRINCIPAL_COMPONENTS, *unit.shape)
        principal = PCA(components, svd_solver="covariance_eigh").fit_transform(unit.astype(np.float64))
        if len(unit) < FEWEST_FOR_TSNE or not principal.std(axis=0).max() > 0:
            return np.pad(principal, ((0, 0), (0, 2)))[:, :2]
        return TSNE(perplexity=PERPLEXITY, init="pca", random_state=seed).fit_transform(principal)
