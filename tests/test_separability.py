from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from masm.separability import FEWEST_FOR_TSNE, NEIGHBOURS, Separability, project, separability

METHODS = {"upsample": ("real", "upsample"), "phone": ("real", "swap", "reenact")}


def make_frames(people: int = 9, frames: int = 2, unknown: int = 0) -> pd.DataFrame:
    """A video of each person for each method of two datasets; the identity of the first `unknown` is not known."""
    rows = [
        {
            "sample_id": f"{dataset}/{method}/{person}/{frame}",
            "dataset": dataset,
            "method": method,
            "video_id": f"v{person}",
            "identity": f"p{person}" if person >= unknown else None,
            "label": int(method != "real"),
        }
        for dataset, methods in METHODS.items()
        for method in methods
        for person in range(people)
        for frame in range(frames)
    ]
    return pd.DataFrame(rows)


def make_embeddings(frames: pd.DataFrame, label: float = 1.0, dataset: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise, moved by label and by dataset, of lengths that must not matter."""
    rng = np.random.default_rng((seed,))
    embeddings = rng.normal(size=(len(frames), 6))
    embeddings[:, 0] += label * frames["label"]
    embeddings[:, 1] += dataset * (frames["dataset"] == "phone")
    return (embeddings * rng.uniform(0.1, 10, (len(frames), 1))).astype(np.float32)


def unit(embeddings: np.ndarray) -> np.ndarray:
    longs = embeddings.astype(np.float64)
    return longs / np.linalg.norm(longs, axis=1, keepdims=True)


def brute_force_neighbours(frames: pd.DataFrame, embeddings: np.ndarray) -> list[list[int]]:
    """By sorting all frames of other people, one frame after the other."""
    vectors, rows, found = unit(embeddings), frames.fillna({"identity": ""}).to_dict("records"), []
    for index, row in enumerate(rows):
        others = []
        for other, candidate in enumerate(rows):
            same_person = row["identity"] and row["identity"] == candidate["identity"]
            same_video = all(row[key] == candidate[key] for key in ("dataset", "method", "video_id"))
            if not same_person and not (not row["identity"] and same_video):
                others.append((np.linalg.norm(vectors[index] - vectors[other]), other))
        found.append([other for _, other in sorted(others)[:NEIGHBOURS]])
    return found


def brute_force_given(groups: list[object], neighbours: list[list[int]]) -> list[object]:
    names = sorted(set(groups))  # type: ignore[type-var]
    weights = {name: Fraction(1, groups.count(name)) for name in names}  # equal is equal
    return [max(names, key=lambda n: sum(weights[n] for o in own if groups[o] == n)) for own in neighbours]


def brute_force_silhouette(groups: list[object], vectors: np.ndarray) -> float:
    """Rousseeuw (1987), equation 1 and what follows it."""
    values = []
    for index, group in enumerate(groups):
        means = {}
        for name in set(groups):
            members = [other for other in range(len(groups)) if groups[other] == name and other != index]
            means[name] = np.mean([np.linalg.norm(vectors[index] - vectors[other]) for other in members])
        own, nearest = means.pop(group), min(means.values())
        values.append((nearest - own) / max(own, nearest))
    return float(np.mean(values))


def mean_recall(groups: list[object], given: list[object]) -> float:
    hits = pd.Series(np.array(groups) == np.array(given)).groupby(groups).mean()
    return float(hits.mean())


@pytest.mark.parametrize("unknown", [0, 4])
def test_figures_equal_brute_force(unknown: int) -> None:
    frames = make_frames(unknown=unknown)
    embeddings = make_embeddings(frames, 2.0, 2.0, seed=unknown)
    found = separability(frames, embeddings, seed=0)
    neighbours = brute_force_neighbours(frames, embeddings)
    for row in found.groupings:
        groups = frames[row.by].tolist()
        assert row.groups == len(set(groups))
        expected = mean_recall(groups, brute_force_given(groups, neighbours))
        assert row.knn_balanced_accuracy == pytest.approx(expected, abs=1e-12)
        assert row.silhouette == pytest.approx(brute_force_silhouette(groups, unit(embeddings)), abs=1e-5)
        assert row.knn_balanced_accuracy > 1.2 / row.groups  # the test would see figures of mere chance
    labels = frames["label"].tolist()
    share = np.array([np.mean([labels[other] for other in own]) for own in neighbours])
    given = np.array(brute_force_given(labels, neighbours))
    wanted = [("upsample", ""), ("phone", ""), ("phone", "swap"), ("phone", "reenact")]
    assert [(row.dataset, row.method) for row in found.datasets] == wanted
    for row in found.datasets:
        methods = ("real", row.method) if row.method else METHODS[row.dataset]
        own = ((frames["dataset"] == row.dataset) & frames["method"].isin(methods)).to_numpy()
        assert row.frames == own.sum()
        assert row.knn_auc == pytest.approx(roc_auc_score(np.array(labels)[own], share[own]))
        expected = mean_recall(np.array(labels)[own].tolist(), given[own].tolist())
        assert row.knn_balanced_accuracy == pytest.approx(expected)


def test_an_embedding_of_the_person_alone_tells_no_label() -> None:
    """Every person is real or fake throughout: their own frames as neighbours would give the label away."""
    rng = np.random.default_rng((5,))
    frames = pd.DataFrame(
        {
            "sample_id": [f"s{index}" for index in range(400)],
            "dataset": "mine",
            "method": ["real" if index // 8 % 2 else "swap" for index in range(400)],
            "video_id": [f"v{index}" for index in range(400)],
            "identity": [f"p{index // 8}" for index in range(400)],
            "label": [int(index // 8 % 2 == 0) for index in range(400)],
        }
    )
    embeddings = np.repeat(rng.normal(size=(50, 16)), 8, axis=0) + rng.normal(0, 0.05, (400, 16))
    known = separability(frames, embeddings, seed=0).groupings[0]
    assert abs(known.knn_balanced_accuracy - 0.5) < 0.25
    unknown = separability(frames.assign(identity=""), embeddings, seed=0).groupings[0]
    assert unknown.knn_balanced_accuracy == 1


def test_sizes_of_groups_do_not_decide() -> None:
    """Of noise, whose fakes are nine in ten, half is right: not all fakes and no real."""
    frames = make_frames(people=300, frames=1).query("dataset == 'upsample'").reset_index(drop=True)
    frames = pd.concat([frames] + [frames[frames["label"] == 1].assign(identity=f"q{copy}") for copy in range(8)])
    frames["identity"] = [f"p{index}" for index in range(len(frames))]
    found = separability(frames, make_embeddings(frames, label=0), seed=0)
    assert found.groupings[0].knn_balanced_accuracy == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "change",
    [lambda frames: frames[frames["label"] == 1], lambda frames: frames.assign(identity="one person")],
    ids=["one class", "one person"],
)
def test_what_is_undefined_is_left_out_of_the_metrics(change: object) -> None:
    frames = change(make_frames())  # type: ignore[operator]
    found = separability(frames, make_embeddings(frames), seed=0)
    assert math.isnan(found.groupings[0].knn_balanced_accuracy)
    assert all(math.isnan(row.knn_auc) for row in found.datasets)
    assert "by_label.knn_balanced_accuracy" not in found.metrics()
    assert all(math.isfinite(value) for value in found.metrics().values())
    assert "by_dataset.silhouette" in found.metrics()


def test_no_embeddings_show_nothing() -> None:
    nothing = separability(make_frames().head(0), np.empty((0, 6), np.float32), seed=0)
    assert (nothing.groupings, nothing.datasets, nothing.metrics()) == ((), (), {})
    assert list(nothing.points) == ["sample_id", "dataset", "method", "label", "x", "y"]


def test_metrics_are_the_rows() -> None:
    frames = make_frames()
    found: Separability = separability(frames, make_embeddings(frames), seed=0)
    metrics = found.metrics()
    assert metrics["by_method.silhouette"] == found.groupings[1].silhouette
    assert metrics["phone.knn_auc"] == found.datasets[1].knn_auc
    assert metrics["phone.swap.knn_auc"] == found.datasets[2].knn_auc
    assert len(metrics) == 2 * 3 + 2 * 4


def test_the_map_keeps_groups_together_and_is_the_same_with_any_number_of_threads() -> None:
    frames = make_frames(people=12)
    embeddings = make_embeddings(frames)
    embeddings[:, 0] = np.where(frames["label"] == 1, 100, -100)
    embeddings = unit(embeddings)
    assert len(frames) >= FEWEST_FOR_TSNE
    maps = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            maps.append(project(embeddings, seed=3))
    np.testing.assert_array_equal(*maps)
    assert (project(embeddings, seed=3) == maps[0]).all()
    labels = frames["label"].to_numpy()
    distances = np.linalg.norm(maps[0][:, None] - maps[0], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_few_points_are_mapped_by_their_two_principal_components() -> None:
    frames = make_frames(people=3)
    vectors = unit(make_embeddings(frames))
    assert len(frames) < FEWEST_FOR_TSNE
    centred = vectors - vectors.mean(axis=0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    found = project(vectors, seed=0)
    np.testing.assert_allclose(np.abs(found), np.abs(U[:, :2] * S[:2]), atol=1e-8)


def test_one_frame_has_a_place_and_no_figures() -> None:
    found = separability(make_frames().head(1), np.ones((1, 6), np.float32), seed=0)
    assert found.points[["x", "y"]].to_numpy().tolist() == [[0, 0]]
    assert found.metrics() == {}


def test_embeddings_that_are_all_alike_have_a_map() -> None:
    """A detector can collapse; its report must come out all the same."""
    frames = make_frames(people=12)
    found = separability(frames, np.ones((len(frames), 6), np.float32), seed=0)
    assert np.isfinite(found.points[["x", "y"]]).all(axis=None)
