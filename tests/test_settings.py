from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from masm.errors import UserError
from masm.settings import Losses, api_key, fingerprint, hyperparameters_of, load_settings
from tests.conftest import ROOT

LR = {"type": "loguniform", "lower": 1e-4, "upper": 1e-2}
KINDS = {"type": "choice", "values": ["none", "adaptive"]}


def write(folder: Path, change: dict[str, Any] | None = None, remove: str | None = None) -> Path:
    """The repository's params.yaml with some dotted keys set, or one removed."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in (change or {}).items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[leaf] = value
    if remove:
        del tree[remove]
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_shipped_file_loads() -> None:
    settings = load_settings(ROOT / "params.yaml")
    assert settings.with_role("train") == ["swap", "reenact"]
    assert settings.with_role("validate") == ["selfblend"]
    assert settings.table("denoise") == ROOT / "data" / "test" / "denoise"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("backbone.layout", "fsfm", "layout is for files"),
        ("train.lrr", 1e-3, "train.lrr: unknown setting; did you mean lr?"),
        ("serach", {}, "serach: unknown setting; did you mean search?"),
        ("train.rank", 4, "train.rank: unknown setting; rank is searched: set its range in search.space"),
        (
            "search.space.rnk",
            {"type": "choice", "values": [1]},
            "search.space.rnk: unknown setting; did you mean rank?",
        ),
        ("search.optimisation.epoch", 1, "search.optimisation.epoch: unknown setting; did you mean epochs?"),
        ("datasets.swap.rol", "train", "datasets.swap.rol: unknown setting; did you mean role?"),
        ("datasets.swap.role", "testing", "datasets.swap.role"),
        ("datasets.swap", 3, "datasets.swap: Input should be a valid dictionary"),
        (
            "datasets.mine",
            {"role": "test", "index": "i", "digset": "d", "splits": ["test"]},
            "datasets.mine.digset: unknown setting; did you mean digest?",
        ),
        (
            "datasets.mine",
            {"role": "train", "index": "i", "digest": "d", "splits": ["train", "test"]},
            "datasets.mine: splits: a train dataset takes train and val alone",
        ),
        ("checks.coverage", 1.5, "checks.coverage: Input should be less than or equal to 1"),
        ("train.epochs", 0, "train.epochs: Input should be greater than or equal to 1 (it is 0)"),
        ("crop.detector", "yunet", "crop: detector 'yunet' needs detector_weights"),
        ("faces.shares", {"train": 0.5, "validate": 0.1, "test": 0.1}, "shares must give train, validate and test"),
        ("search.space.lambda_orth", {"type": "loguniform", "lower": 0, "upper": 1}, "needs lower > 0"),
        ("search.space.lambda_orth", {"type": "uniform", "lower": 2, "upper": 1}, "must be less than upper"),
        ("adapter.method", "lore", "adapter.method: Input should be 'masm', 'effort', 'lora'"),
        ("adapter.targets", ["q", "kk"], "adapter.targets.1: Input should be 'q', 'k'"),
        ("compare.adapters.methods.effort.rank", 2, "compare.adapters: effort has no rank: take it out"),
        ("compare.adapters.methods.lora", {"lr": 1e-3}, "compare.adapters: lora needs rank: give it"),
        ("losses.triplet", "batch_al", "losses.triplet: Input should be 'none', 'batch_all'"),
        ("losses.margn", 0.1, "losses.margn: unknown setting; did you mean margin?"),
        ("losses.margin", -0.1, "losses.margin: Input should be greater than or equal to 0"),
        (
            "search.space.margin",
            {"type": "uniform", "lower": 0.1, "upper": 0.4},
            "margin stands in losses and in search.space: take it out of one of them",
        ),
        (
            "search.space.alignment_weight",
            {"type": "choice", "values": [0.1, -0.1]},
            "search.space: alignment_weight cannot be below 0, as -0.1 is",
        ),
        (
            "search.space.uniformity_weight",
            {"type": "uniform", "lower": -1, "upper": 1},
            "search.space: uniformity_weight cannot be below 0, as -1.0 is",
        ),
        (
            "search.space.margin",
            {"type": "uniform", "lower": 0.1, "upper": 9},
            "search.space: margin cannot be above 2, as 9.0 is",
        ),
        (
            "compare.adapters.losses",
            {"plain": {}, "more": {"attribution": "method"}},
            "compare.adapters: probe's features are frozen",
        ),
        ("search.space.rank.values", [], "search.space.rank.values: there is nothing to choose from"),
        ("search.space.lr", LR, "lr stands in train and in search.space: take it out of one of them"),
        ("train.lr", None, "train.lr is missing: give it, or a range in search.space"),
        ("search.optimisation.lr", None, "search.optimisation.lr is missing: give it, or a range"),
        ("search.space.mask_kind", KINDS, "mask.kind and search.space.mask_kind stand both: give one of them"),
        ("mask.kind", None, "mask.kind and search.space.mask_kind are both missing: give one of them"),
        ("search.stopping", {"grace_epochs": 2}, "grace_epochs (2) must be less than optimisation.epochs (2)"),
        ("search.study", {"name": "a/b"}, "search.study.name: String should match pattern"),
        ("search.sampler", "cma", "search.sampler: Input should be 'tpe' or 'gp'"),
        (
            "search.space.mask_threshold",
            {"type": "uniform", "lower": 0, "upper": 1, "when": {"mask_kind": ["adaptive"]}},
            "search.space: mask_threshold.when names mask_kind, which is not in search.space",
        ),
        ("pretrain.folder", "faces", "pretrain: folder needs detector_weights"),
        ("pretrain.people", 0, "pretrain: people 0 and no folder leave nothing to learn from"),
        ("pretrain.batch_size", 127, "pretrain: batch_size (127) must be a multiple of workers (2)"),
        ("licences", {"swapp": "CC BY 4.0"}, "licences.swapp is of no dataset: name one, or faces"),
        ("train.calibration", "platt", "train.calibration: Input should be 'temperature' or 'isotonic'"),
        ("evaluate.slices", ["compresion"], "evaluate.slices.0: String should match pattern"),
        ("evaluate.slices", ["profile", "split", "profile"], "evaluate.slices: profile stands twice: take one"),
        ("evaluate.robustness", {"kinds": ["blur", "blur"]}, "evaluate.robustness.kinds: blur stands twice"),
        ("gate.floors", {"upsampel": 0.5, "default": 0.5}, "gate.floors names upsampel, which is no dataset"),
        ("gate.floors", {"upsample": 0.5}, "gate: floors needs default"),
        ("gate.min_gian", 0.1, "gate.min_gian: unknown setting; did you mean min_gain?"),
        ("root", "/", "root: not a setting"),
        ("train.precision", "float16", "train.precision: Input should be 'float32' or 'bfloat16'"),
        ("train.workers", 0, "train.workers.least: Input should be greater than or equal to 1"),
        ("train.workers", True, "train.workers: give a number, or {least, most} (it is True)"),
        ("train.workers", "two", "train.workers: Input should be a valid dictionary"),
        ("train.workers", {"least": 3, "most": 2}, "train.workers: least (3) must not be above most (2)"),
        ("train.workers", 3, "batch_size (32) cannot be shared in real-fake pairs by 3 worker(s) with accumulation 1"),
        ("train.workers", {"least": 1, "most": 4}, "by 1 to 4 worker(s) with accumulation 1: use a multiple of 24"),
        ("train.accumulation", 3, "by 2 worker(s) with accumulation 3: use a multiple of 12"),
        ("search.optimisation.accumulation", 3, "search.optimisation: batch_size (32) cannot be shared"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, key: str, value: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(write(tmp_path, {key: value}))
    assert says in str(caught.value)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(write(tmp_path, {"train.lrr": 1, "crop.sise": 2}, remove="mlflow"))
    message = str(caught.value)
    assert "train.lrr" in message
    assert "crop.sise" in message
    assert "mlflow: this setting is missing" in message


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_settings(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("just words")
    with pytest.raises(UserError, match="must hold sections"):
        load_settings(tmp_path / "params.yaml")


def test_addresses_are_absolute_and_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = write(tmp_path, {"mlflow.tracking_uri": "sqlite:///below/mlflow.db", "ray.storage": "runs"})
    settings = load_settings(path)
    assert settings.mlflow.tracking_uri == f"sqlite:///{tmp_path}/below/mlflow.db"
    assert settings.ray.storage == str(tmp_path / "runs")
    assert settings.ray.address is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    settings = load_settings(path)
    assert settings.mlflow.tracking_uri == "http://tracking:5000"
    assert settings.ray.address == "ray-head:6379"


def test_forgeries_have_the_licence_of_the_faces_that_they_are_made_from(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path)).licence("swap") == "drawn here, of nobody"
    photographs = {"faces.source": "photographs", "faces.folder": "faces"}
    assert load_settings(write(tmp_path, photographs)).licence("swap") == "not stated"
    settings = load_settings(write(tmp_path, photographs | {"licences": {"faces": "CC BY 4.0", "denoise": "ours"}}))
    assert [settings.licence(name) for name in ("swap", "denoise")] == ["CC BY 4.0", "ours"]


def test_fingerprint_depends_on_every_setting(tmp_path: Path) -> None:
    former = load_settings(write(tmp_path)).train
    changed = load_settings(write(tmp_path, {"train.weight_decay": 0.02})).train
    assert fingerprint(former) == fingerprint(load_settings(write(tmp_path)).train)
    assert fingerprint(former) != fingerprint(changed)
    assert fingerprint(former, "a") != fingerprint(former, "b")


@pytest.mark.parametrize("where", ["train", "search.optimisation"])
@pytest.mark.parametrize(
    ("losses", "searched", "named"),
    [
        ({"triplet": "batch_all"}, None, "triplet_weight"),
        ({"uniformity_weight": 0.1}, None, "uniformity_weight"),
        ({}, "alignment_weight", "alignment_weight"),
        ({"attribution": "method"}, "margin", None),
        ({"triplet": "batch_all", "triplet_weight": 0}, None, None),
    ],
)
def test_a_batch_in_parts_has_no_losses_over_pairs(
    tmp_path: Path, where: str, losses: dict[str, Any], searched: str | None, named: str | None
) -> None:
    changes: dict[str, Any] = {f"{where}.accumulation": 2, "losses": losses}
    if searched is not None:
        changes[f"search.space.{searched}"] = {"type": "uniform", "lower": 0, "upper": 0.5}
    if named is None:
        load_settings(write(tmp_path, changes))
        return
    with pytest.raises(UserError, match=rf"{where}\.accumulation is 2, but the losses over pairs \({named}\)"):
        load_settings(write(tmp_path, changes))


def test_workers_are_a_number_or_two(tmp_path: Path) -> None:
    workers = load_settings(write(tmp_path)).train.workers
    assert (workers.least, workers.most) == (2, 2)
    elastic = {"train.workers": {"least": 1, "most": 4}, "train.batch_size": 48, "train.accumulation": 2}
    workers = load_settings(write(tmp_path, elastic)).train.workers
    assert (workers.least, workers.most) == (1, 4)


def test_a_detector_without_landmarks_does_not_align(tmp_path: Path) -> None:
    path = write(tmp_path, {"crop.detector": "cascade", "crop.alignment": "landmarks"})
    with pytest.raises(UserError, match="alignment 'landmarks' needs detector 'yunet'"):
        load_settings(path)


def test_the_probe_has_no_losses_of_features(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, {"adapter.method": "probe"})).searched == []
    assert load_settings(write(tmp_path, {"adapter.method": "probe", "losses": {"margin": 0.3}})).searched == []
    weight = {"type": "uniform", "lower": 0.1, "upper": 0.4}
    for change in (
        {"losses": {"triplet": "batch_all"}},
        {"losses": {"attribution": "method"}},
        {"losses": {}, "search.space.alignment_weight": weight},
    ):
        with pytest.raises(UserError, match="probe's features are frozen"):
            load_settings(write(tmp_path, {"adapter.method": "probe", **change}))


def test_losses_in_use_are_those_with_a_weight() -> None:
    every = {"triplet": "soft_margin", "labels": "method", "attribution": "dataset", "uniformity_weight": 0.5}
    assert Losses(**every).in_use() == every | {"triplet_weight": 1.0, "attribution_weight": 1.0}
    assert Losses(triplet="batch_all", attribution="method", triplet_weight=0, attribution_weight=0).in_use() == {}
    assert Losses(labels="method", margin=0.3).in_use() == {}
    assert Losses(triplet="batch_all", margin=0).in_use() == {
        "triplet": "batch_all",
        "labels": "class",
        "triplet_weight": 1.0,
        "margin": 0.0,
    }


def test_rate_and_kind_of_the_mask_can_be_searched(tmp_path: Path) -> None:
    changes = {"search.space.lr": LR, "train.lr": None, "search.optimisation.lr": None}
    assert load_settings(write(tmp_path, changes)).searched == [*hyperparameters_of("masm"), "lr"]
    for method, found in (("lora", ["rank", "lr"]), ("full", ["lr"])):
        assert load_settings(write(tmp_path, {**changes, "adapter.method": method})).searched == found
    with pytest.raises(UserError, match="probe has nothing that lr moves"):
        load_settings(write(tmp_path, {**changes, "adapter.method": "probe"}))
    changes = {"search.space.mask_kind": KINDS, "mask.kind": None, "compare": {}}
    assert load_settings(write(tmp_path, changes)).searched == [*hyperparameters_of("masm"), "mask_kind"]
    assert load_settings(write(tmp_path, {**changes, "adapter.method": "lora"})).searched == ["rank"]


def test_a_comparison_needs_the_kind_of_mask_that_the_search_looks_for(tmp_path: Path) -> None:
    changes = {"search.space.mask_kind": KINDS, "mask.kind": None}
    with pytest.raises(UserError, match=r"compare\.adapters\.methods\.masm needs mask_kind"):
        load_settings(write(tmp_path, changes))
    given = {f"compare.{name}.methods.masm.mask_kind": "static" for name in ("adapters", "metric_learning")}
    load_settings(write(tmp_path, {**changes, **given}))
    with pytest.raises(UserError, match="lora has no mask_kind"):
        load_settings(write(tmp_path, {"compare.adapters.methods.lora.mask_kind": "static"}))


def test_conditions_are_of_what_the_method_searches(tmp_path: Path) -> None:
    margin = {"type": "choice", "values": [0.1, 0.2], "when": {"subspaces": [4]}}
    changes = {"search.space.margin": margin, "losses": {"triplet": "batch_all"}}
    assert "margin" in load_settings(write(tmp_path, changes)).searched
    with pytest.raises(
        UserError, match=r"search\.space\.margin\.when names subspaces, which is not searched with lora"
    ):
        load_settings(write(tmp_path, {**changes, "adapter.method": "lora"}))


def test_contradictions_of_the_search_are_named(tmp_path: Path) -> None:
    stopping, second = {"grace_epochs": 1}, {"name": "latency_ms"}
    with pytest.raises(UserError, match="stopping judges trials by their score alone"):
        load_settings(write(tmp_path, {"search.stopping": stopping, "search.second_objective": second}))
    with pytest.raises(UserError, match="sampler gp learns from whole trials alone: take stopping out"):
        load_settings(write(tmp_path, {"search.stopping": stopping, "search.sampler": "gp"}))
    with pytest.raises(UserError, match=r"warm_start is study\.name itself"):
        load_settings(write(tmp_path, {"search.study": {"name": "mine"}, "search.warm_start": "mine"}))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@host/studies",
        "postgresql://me:/secret@host/studies",
        "postgresql://me:#secret@host/studies",
        "postgresql://me:?secret@host/studies",
        "postgresql://host/studies?user=me&password=secret",
    ],
)
def test_a_password_does_not_belong_into_params_and_is_not_shown(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="storage has a password, which git would keep") as caught:
        load_settings(write(tmp_path, {"search.study": {"storage": url}}))
    assert "secret" not in str(caught.value)


def test_a_name_belongs_into_params(tmp_path: Path) -> None:
    url = "postgresql://me@host/studies?sslmode=require"
    assert load_settings(write(tmp_path, {"search.study": {"storage": url}})).search.study.storage == url


def test_numbers_of_the_losses_are_searched_where_they_have_a_range(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path)).searched == list(hyperparameters_of("masm"))
    ranges = {
        "margin": {"type": "uniform", "lower": 0.1, "upper": 0.4},
        "attribution_weight": {"type": "choice", "values": [1]},
    }
    changes: dict[str, Any] = {f"search.space.{name}": value for name, value in ranges.items()}
    for triplet, found in (("batch_all", ["margin"]), ("soft_margin", []), ("none", [])):
        path = write(tmp_path, {"losses": {"triplet": triplet}, "adapter.method": "effort", **changes})
        assert load_settings(path).searched == found
    path = write(tmp_path, {"losses": {"triplet": "batch_all", "attribution": "method"}, **changes})
    assert load_settings(path).searched[-2:] == ["margin", "attribution_weight"]


def test_media_root_is_seen_from_the_file_and_the_environment_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASM_MEDIA_ROOT", raising=False)
    path = write(tmp_path, {"serving.media_root": "media"})
    assert load_settings(path).serving.media_root == tmp_path / "media"
    monkeypatch.setenv("MASM_MEDIA_ROOT", "/elsewhere")
    assert load_settings(path).serving.media_root == Path("/elsewhere")


def test_a_key_belongs_into_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"serving\.api_key: unknown setting"):
        load_settings(write(tmp_path, {"serving.api_key": "secret"}))
    monkeypatch.setenv("MASM_API_KEY", "")
    assert api_key() is None
    monkeypatch.setenv("MASM_API_KEY", "secret")
    assert api_key() == "secret"


@pytest.mark.parametrize("key", ["d\u00e9j\u00e0", "two\nlines"])
def test_key_that_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MASM_API_KEY", key)
    with pytest.raises(UserError, match="MASM_API_KEY has letters"):
        api_key()
