from __future__ import annotations

import gc
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from masm.backbones import STARTER
from masm.data.frames import load_frames
from masm.data.ingest import ingest
from masm.data.parts import plan
from masm.data.stored import decode
from masm.data.table import SCHEMA, read_table, write_table
from masm.errors import UserError
from masm.hyperparameters import Hyperparameters, build_detector, make_recipe, read_best, weights_digest
from masm.losses import LossSettings
from masm.metrics import area_under_curve
from masm.probe import embed, fit_probe
from masm.scoring import FACTS, score, score_parts, score_rows, subspace_shares
from masm.settings import COLUMNS, Losses, Settings, load_settings
from masm.validation import predict
from tests.adapters.models import perturb
from tests.data.test_ingest import make_settings
from tests.test_settings import write


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A small workspace with two face tables."""
    made = make_settings(tmp_path_factory.mktemp("workspace"), evaluate__batch_size=5)
    for name in ("swap", "upsample"):
        ingest(made, name, lambda done, total: None)
    return made


def test_every_frame_is_scored_once_and_in_its_place(settings: Settings) -> None:
    """Defect 8 of the reference benchmark: frames are dropped or doubled where batches do not divide them."""
    detector = build_detector(settings, Hyperparameters(2, 2, 0.5, 0.1, 0.1))
    counted: list[int] = []
    scores = score(detector, settings, ["upsample", "swap"], counted.append)
    assert sum(counted) == len(scores)
    assert set(scores["outcome"]) == {"ok"}
    for name in ("upsample", "swap"):
        table = read_table(settings.table(name), ["sample_id", "image"]).to_pandas()
        own = scores[scores["dataset"] == name]
        assert own["sample_id"].tolist() == table["sample_id"].tolist()
        with torch.inference_mode():
            logits = detector.eval()(decode(table["image"].tolist()).float() / 255)
        np.testing.assert_allclose(own["score"], torch.sigmoid(logits.double()).numpy(), atol=1e-6)


def test_scores_carry_the_slices_of_the_tables(settings: Settings) -> None:
    slices = ("attributes.camera", "compression", "face_size", "attributes.none")
    evaluate = settings.evaluate.model_copy(update={"slices": slices})
    scores = score(build_detector(settings, None), settings.model_copy(update={"evaluate": evaluate}), ["upsample"])
    rows = read_table(settings.table("upsample"), ["compression", "bbox", "attributes"]).to_pandas()
    assert scores["compression"].tolist() == rows["compression"].tolist()
    assert scores["attributes.camera"].tolist() == [dict(pairs)["camera"] for pairs in rows["attributes"]]
    assert scores["attributes.none"].isna().all()
    np.testing.assert_array_equal(scores["face_size"], [max(box[2:]) for box in rows["bbox"]])
    assert set(scores["distortion"]) == {"none"}
    assert set(scores["level"]) == {0}


def test_slices_are_columns_of_the_face_tables() -> None:
    known = set(COLUMNS.split("|"))
    assert known - set(SCHEMA.names) == {"face_size", r"attributes\..+"}
    assert not known & set(FACTS)


@pytest.mark.parametrize("change", ["dropped", "doubled", "moved"])
def test_scores_of_other_frames_than_the_tables_are_refused(settings: Settings, change: str) -> None:
    parts = plan(settings, ["upsample"])
    scored = {part.name: scores for part, scores in score_parts(build_detector(settings, None), settings, parts)}
    rows = range(len(next(iter(scored.values()))))
    other = {"dropped": rows[:-1], "doubled": [*rows[:-1], 0], "moved": [1, 0, *rows[2:]]}[change]
    assert len(pa.concat_tables(score_rows(settings, parts, lambda part: scored[part.name]))) == len(rows)
    with pytest.raises(UserError, match=r"are not of the frames that .*upsample has there"):
        list(score_rows(settings, parts, lambda part: scored[part.name].take(pa.array(other))))


def test_scoring_keeps_no_feature_maps(settings: Settings, tmp_path: Path) -> None:
    """Defect 6 of the reference benchmark: of eight times the frames nothing is kept but their scores."""
    rows = read_table(settings.table("upsample")).to_pylist()
    larger = settings.model_copy(update={"root": tmp_path})
    copies = [{**row, "video_id": f"{row['video_id']}-{copy}"} for copy in range(8) for row in rows]
    write_table(larger.table("upsample"), copies, [])
    detector = build_detector(settings, None)

    def most_bytes(workspace: Settings) -> int:
        """Of all features and weights that live at the end of a batch; pixels are uint8."""
        seen: list[int] = []

        def count(done: int) -> None:
            tensors = (one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
            seen.append(sum(one.nbytes for one in tensors if one.is_floating_point()))

        score(detector, workspace, ["upsample"], count)
        return max(seen)

    gc.freeze()  # what lives by now need not be gone through with every batch
    try:
        few = most_bytes(settings)
        scores = 8 * (len(copies) - len(rows))  # float64: what grows by right
        assert most_bytes(larger) <= few + scores
        kept: list[torch.Tensor] = []
        hook = detector.backbone.register_forward_hook(lambda module, given, features: kept.append(features))
        assert most_bytes(larger) > few + scores  # had they been kept, this test would see it
        hook.remove()
    finally:
        gc.unfreeze()


def test_shares_are_means_over_evenly_spaced_frames(settings: Settings) -> None:
    detector = build_detector(settings, Hyperparameters(2, 3, 0.5, 0.1, 0.1)).eval()
    perturb(detector.backbone, std=0.02)
    table = read_table(settings.table("upsample"), ["method", "image"]).to_pandas()
    found = subspace_shares(detector, settings, ["upsample"], frames=3)
    assert found[["method", "subspace"]].apply(tuple, axis=1).tolist() == [
        (method, index) for method in ("real", "upsample") for index in (1, 2, 3)
    ]
    for method, rows in found.groupby("method"):
        images = table.loc[table["method"] == method, "image"].tolist()
        chosen = [images[0], images[round((len(images) - 1) / 2)], images[-1]]
        expected = detector.subspace_shares(decode(chosen).float() / 255).mean(dim=0)
        np.testing.assert_allclose(rows["share"], expected, atol=1e-5)
        assert set(rows["frames"]) == {3}
        assert rows["share"].abs().max() > 0.01


@pytest.mark.parametrize("method", ["effort", "lora", "layernorm", "full", "probe"])
def test_a_method_takes_of_the_hyperparameters_what_it_has(settings: Settings, method: str) -> None:
    changed = settings.model_copy(update={"adapter": settings.adapter.model_copy(update={"method": method})})
    detector = build_detector(changed, Hyperparameters.of({"rank": 3} if method == "lora" else {}, changed.losses))
    assert detector.adapter.method == method
    recipe = make_recipe(changed, changed.train, Hyperparameters.of({}, changed.losses))
    assert (recipe.mask.kind, recipe.lambda_orth, recipe.lambda_spec) == ("none", 0, 0)
    assert not recipe.losses.over_pairs
    if method == "lora":
        assert detector.backbone.blocks[0].mlp.fc2.lora_A.default.weight.shape == (3, 768)


def test_losses_have_what_was_searched_and_the_rest_of_the_settings(settings: Settings) -> None:
    losses = Losses(triplet="batch_all", triplet_weight=0.5, uniformity_weight=0.3, attribution_weight=2.0)
    changed = settings.model_copy(update={"losses": losses})
    recipe = make_recipe(changed, changed.train, Hyperparameters.of({"margin": 0.35}, losses))
    assert recipe.losses == LossSettings(
        triplet="batch_all", triplet_weight=0.5, margin=0.35, uniformity_weight=0.3
    )  # without attribution its weight is 0


def test_a_loss_that_a_condition_leaves_out_is_off(settings: Settings) -> None:
    losses = Losses(triplet="batch_all", triplet_weight=0.5, uniformity_weight=0.3)
    searched = ("rank", "subspaces", "triplet_weight")  # triplet_weight has `when: {subspaces: [4]}`
    without = Hyperparameters.of({"rank": 3, "subspaces": 2}, losses, searched)
    assert (without.triplet_weight, without.uniformity_weight, without.margin) == (0, 0.3, 0.2)
    drawn = Hyperparameters.of({"rank": 3, "subspaces": 4, "triplet_weight": 0.7}, losses, searched)
    assert drawn.triplet_weight == 0.7


def test_a_video_that_failed_is_a_row_without_a_score(settings: Settings, tmp_path: Path) -> None:
    copy = settings.model_copy(update={"root": tmp_path})
    rows = read_table(settings.table("upsample")).to_pylist()
    failure = {
        "dataset": "upsample", "split": "test", "label": 0, "method": "real", "video_id": "broken",
        "identity": "somebody", "outcome": "unreadable", "reason": "empty file",
    }  # fmt: skip
    write_table(copy.table("upsample"), rows, [failure])
    scores = score(build_detector(settings, None), copy, ["upsample"])
    assert len(scores) == len(rows) + 1
    (last,) = scores[scores["outcome"] != "ok"].to_dict("records")
    assert (last["video_id"], last["outcome"], last["frame_index"]) == ("broken", "unreadable", -1)
    assert np.isnan(last["score"])


def test_the_probe_is_a_linear_head_on_frozen_features(settings: Settings) -> None:
    probe = build_detector(settings, None)
    frozen = {name: value.clone() for name, value in probe.backbone.state_dict().items()}
    tables = [settings.table("swap")]
    frames, validation = load_frames(tables, "train"), load_frames(tables, "val")
    reached = fit_probe(probe, frames, validation, batch_size=16)
    assert all(torch.equal(value, frozen[name]) for name, value in probe.backbone.state_dict().items())
    logits = predict(probe, validation.images, 16)
    features = embed(probe, validation.images, 16)
    head = probe.head
    by_hand = features @ head.weight[0].detach().double().numpy() + head.bias.item()
    np.testing.assert_allclose(logits, by_hand, atol=1e-3)
    assert reached == pytest.approx(roc_auc_score(validation.labels, logits), abs=0.02)
    fitted = area_under_curve(frames.labels, predict(probe, frames.images, 16))
    assert fitted > 0.6  # it has seen these


def test_the_best_hyperparameters_are_read_or_refused(settings: Settings, tmp_path: Path) -> None:
    copy, best = settings.model_copy(update={"root": tmp_path}), tmp_path / "search" / "best.json"
    with pytest.raises(UserError, match="run `dvc repro search` first"):
        read_best(copy)
    best.parent.mkdir()
    best.write_text('{"hyperparameters": {"rank": 2}}')
    with pytest.raises(UserError, match="is not what the search writes"):
        read_best(copy)


def test_rate_and_kind_of_the_mask_are_those_that_the_search_found(settings: Settings, tmp_path: Path) -> None:
    searched = load_settings(
        write(
            tmp_path,
            {
                "search.space.lr": {"type": "loguniform", "lower": 1e-4, "upper": 1e-2},
                "search.space.mask_kind": {"type": "choice", "values": ["none", "static"]},
                "train.lr": None,
                "search.optimisation.lr": None,
                "mask.kind": None,
                "compare": {},
            },
        )
    )
    point = {"rank": 3, "subspaces": 2, "mask_kind": "static", "lr": 2e-3}
    found = Hyperparameters.of(point, searched.losses)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "best.json").write_text(json.dumps({"hyperparameters": asdict(found)}))
    assert read_best(searched) == found
    recipe = make_recipe(searched, searched.train, found)
    assert (recipe.lr, recipe.mask.kind, recipe.mask.threshold) == (2e-3, "static", 0.0)
    as_set = make_recipe(settings, settings.train, Hyperparameters.of({"rank": 3}, settings.losses))
    assert (as_set.lr, as_set.mask.kind) == (settings.train.lr, settings.mask.kind)


def test_only_what_is_searched_comes_from_the_search(settings: Settings, tmp_path: Path) -> None:
    """A search that ran while the losses were off says 0 for their weights."""
    losses = Losses(triplet="batch_all", triplet_weight=0.5)
    changed = settings.model_copy(update={"root": tmp_path, "losses": losses})
    found = Hyperparameters.of({"rank": 3, "subspaces": 2, "mask_threshold": 0.3, "lambda_orth": 0.2}, Losses())
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "best.json").write_text(json.dumps({"hyperparameters": asdict(found)}))
    assert read_best(changed) == replace(found, triplet_weight=0.5, margin=0.2)


def test_the_backbones_weights_are_known_by_their_bytes(settings: Settings, tmp_path: Path) -> None:
    def digest(weights: str) -> str:
        backbone = settings.backbone.model_copy(update={"weights": weights})
        return weights_digest(settings.model_copy(update={"root": tmp_path, "backbone": backbone}))

    file = tmp_path / "mine.safetensors"
    with pytest.raises(UserError, match=r"mine\.safetensors cannot be read"):
        digest(file.name)
    for content in (b"some", b"other"):
        file.write_bytes(content)
        assert digest(file.name) == hashlib.sha256(content).hexdigest()
    assert digest("starter") == hashlib.sha256((STARTER / "model.safetensors").read_bytes()).hexdigest()
    assert digest("hub") == "hub"
