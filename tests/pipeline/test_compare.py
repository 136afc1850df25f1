"""The comparison of methods on tiny drawn data, without DVC and without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from masm.console import Progress
from masm.data.frames import load_frames
from masm.data.ingest import ingest
from masm.errors import UserError
from masm.evaluation import macro_video_auc
from masm.settings import Losses, Settings, load_settings
from pipelines.compare import execute, main, plan, write_up
from tests.data.test_ingest import make_settings
from tests.pipeline.workspace import edit

MASM = {"rank": 1, "subspaces": 2, "mask_threshold": 0.2, "lambda_orth": 0.1, "lambda_spec": 0.1}
CHANGES = {
    "compare__tiny": {
        "seeds": 2,
        "table": "reports/tiny.md",
        "methods": {
            "masm": MASM | {"lr": 1e-3},
            "lora": {"lr": 1e-3, "rank": 1},
            "probe": {"lr": 1e-3},
        },
    },
    "compare__losses": {
        "seeds": 2,
        "table": "reports/losses.md",
        "methods": {"masm": MASM | {"lr": 1e-3}, "layernorm": {"lr": 1e-3}},
        "losses": {
            "plain": {},
            "both": {"triplet": "real_anchored", "attribution": "method", "attribution_weight": 0.5},
        },
    },
    "train__epochs": 1,
    "faces__people": 18,
}
LOSSES = ("plain", "both")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A workspace in which the comparison has run."""
    made = make_settings(tmp_path_factory.mktemp("workspace"), **CHANGES)
    for name in (*made.with_role("train"), *made.with_role("test")):
        ingest(made, name, lambda done, total: None)
    lock_data(made, dict.fromkeys(made.datasets, "0" * 32))
    main(made, "tiny")
    return made


def lock_data(settings: Settings, digests: dict[str, str]) -> None:
    """Write dvc.lock with these digests of the face tables."""
    stages = {
        f"ingest@{name}": {"outs": [{"path": str(settings.table(name).relative_to(settings.root)), "md5": digest}]}
        for name, digest in digests.items()
    }
    (settings.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def times(settings: Settings) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (settings.root / "compare" / "tiny").glob("*.json")}


def test_every_method_ran_with_every_seed(settings: Settings) -> None:
    names = {f"{method}-{seed}" for method in ("masm", "lora", "probe") for seed in (7, 8)}
    folder = settings.root / "compare" / "tiny"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{end}" for name in names for end in (".json", ".parquet")
    }
    for name in names:
        result = json.loads((folder / f"{name}.json").read_text())
        scores = pd.read_parquet(folder / f"{name}.parquet")
        assert set(scores["dataset"]) == set(settings.with_role("test"))
        assert result["video_auc"] == pytest.approx(macro_video_auc(scores))
        assert len(result["history"]) == 1
    table = settings.path(settings.compare["tiny"].table).read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| masm", "| lora", "| probe"]
    assert "2 seeds from 7 on" in table
    assert "masm: lr 0.001, rank 1, subspaces 2" in table


def test_what_is_there_is_not_run_again(settings: Settings) -> None:
    before = times(settings)
    table = settings.path(settings.compare["tiny"].table).read_bytes()
    main(settings, "tiny")
    assert times(settings) == before
    assert settings.path(settings.compare["tiny"].table).read_bytes() == table


def test_what_is_missing_or_made_otherwise_is_run_again(settings: Settings) -> None:
    before = times(settings)
    folder = settings.root / "compare" / "tiny"
    (folder / "masm-8.json").unlink()
    (folder / "masm-7.parquet").unlink()
    (folder / "probe-7.json").write_text("{")
    edit(settings.root / "params.yaml", {"compare.tiny.methods.lora.lr": 2e-3})
    main(load_settings(settings.root / "params.yaml"), "tiny")
    after = times(settings)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"masm-7.json", "masm-8.json", "probe-7.json", "lora-7.json", "lora-8.json"}


def test_other_data_are_other_runs(settings: Settings) -> None:
    before = times(settings)
    lock_data(settings, {**dict.fromkeys(settings.datasets, "0" * 32), settings.with_role("test")[0]: "1" * 32})
    main(load_settings(settings.root / "params.yaml"), "tiny")
    assert not set(times(settings).items()) & set(before.items())


def test_every_method_runs_with_every_loss(settings: Settings) -> None:
    main(settings, "losses")
    folder = settings.root / "compare" / "losses"
    names = {f"{method}-{losses}-{seed}" for method in ("masm", "layernorm") for losses in LOSSES for seed in (7, 8)}
    assert {path.stem for path in folder.glob("*.json")} == names
    for name in names:
        result = json.loads((folder / f"{name}.json").read_text())
        assert result["losses"]["triplet"] == ("real_anchored" if "both" in name else "none")
    first, other = (json.loads((folder / f"masm-{losses}-7.json").read_text()) for losses in LOSSES)
    assert first["history"][0]["loss"] < other["history"][0]["loss"]
    assert first["trainable_parameters"] == other["trainable_parameters"]  # the attribution head is not the detector's
    table = settings.path(settings.compare["losses"].table).read_text()
    rows = [line.split(" | ") for line in table.splitlines()[2:6]]
    assert [row[0] for row in rows] == ["| masm, plain", "| masm, both", "| layernorm, plain", "| layernorm, both"]
    assert [bool(row[-2]) for row in rows] == [False, True, False, True]
    assert "gain is over the same method's plain" in table
    assert (
        "Losses beside cross-entropy: both: triplet real_anchored, labels class, triplet_weight 1.0, margin 0.2, "
        "attribution method, attribution_weight 0.5." in table
    )


def test_a_comparison_without_losses_names_those_of_the_settings(settings: Settings) -> None:
    runs, folder = plan(settings, settings.compare["tiny"]), settings.root / "compare" / "tiny"
    assert "Losses beside cross-entropy: none." in write_up(settings, "tiny", runs, folder)
    changed = settings.model_copy(update={"losses": Losses(uniformity_weight=0.5, triplet_weight=2)})
    said = "Losses beside cross-entropy: labels class, uniformity_weight 0.5."
    assert said in write_up(changed, "tiny", runs, folder)
    with pytest.raises(UserError, match="probe's features are frozen"):
        plan(changed, changed.compare["tiny"])


def test_other_weights_of_the_backbone_are_other_runs(settings: Settings, tmp_path: Path) -> None:
    backbone = settings.backbone.model_copy(update={"weights": str(tmp_path / "mine.safetensors")})
    changed = settings.model_copy(update={"backbone": backbone})
    made_with = set()
    for content in (b"some", b"other"):
        (tmp_path / "mine.safetensors").write_bytes(content)
        made_with |= {run.made_with for run in plan(changed, changed.compare["tiny"])[:1]}
    assert len(made_with) == 2


def test_files_of_runs_are_json_where_a_dataset_has_one_class(settings: Settings, tmp_path: Path) -> None:
    """Its validation AUC is undefined, for which JSON has null alone."""
    tables = [settings.table(name) for name in settings.with_role("train")]
    frames, validation = load_frames(tables, "train"), load_frames(tables, "val")
    one = validation.dataset_names[0]
    reals = np.where(validation.datasets == 0, 0, validation.labels)
    run = plan(settings, settings.compare["tiny"])[1]
    with Progress() as bar:
        execute(run, frames, replace(validation, labels=reals), tmp_path, bar)
    result = json.loads((tmp_path / f"{run.name}.json").read_text(), parse_constant=pytest.fail)
    assert result["history"][0][f"val_auc.{one}"] is None


def test_a_comparison_that_is_not_there_is_named(settings: Settings) -> None:
    with pytest.raises(UserError, match=r"no compare\.tinny: choose one of adapters, metric_learning, tiny, losses"):
        main(settings, "tinny")
