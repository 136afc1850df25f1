"""The comparison of methods on tiny drawn data, without DVC and without Ray."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from masm.data.ingest import ingest
from masm.evaluation import macro_video_auc
from masm.settings import Settings, load_settings
from pipelines.compare import main
from tests.data.test_ingest import make_settings
from tests.pipeline.workspace import edit

CHANGES = {
    "compare__seeds": 2,
    "compare__methods": {
        "masm": {"lr": 1e-3, "rank": 1, "subspaces": 2, "mask_threshold": 0.2, "lambda_orth": 0.1, "lambda_spec": 0.1},
        "lora": {"lr": 1e-3, "rank": 1},
        "probe": {"lr": 1e-3},
    },
    "train__epochs": 1,
    "faces__people": 18,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A workspace in which the comparison has run."""
    made = make_settings(tmp_path_factory.mktemp("workspace"), **CHANGES)
    for name in (*made.with_role("train"), *made.with_role("test")):
        ingest(made, name, lambda done, total: None)
    lock_data(made, dict.fromkeys(made.datasets, "0" * 32))
    main(made)
    return made


def lock_data(settings: Settings, digests: dict[str, str]) -> None:
    """Write dvc.lock with these digests of the face tables."""
    stages = {
        f"ingest@{name}": {"outs": [{"path": str(settings.table(name).relative_to(settings.root)), "md5": digest}]}
        for name, digest in digests.items()
    }
    (settings.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def times(settings: Settings) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (settings.root / "compare").glob("*.json")}


def test_every_method_ran_with_every_seed(settings: Settings) -> None:
    names = {f"{method}-{seed}" for method in ("masm", "lora", "probe") for seed in (7, 8)}
    folder = settings.root / "compare"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{end}" for name in names for end in (".json", ".parquet")
    }
    for name in names:
        result = json.loads((folder / f"{name}.json").read_text())
        scores = pd.read_parquet(folder / f"{name}.parquet")
        assert set(scores["dataset"]) == set(settings.with_role("test"))
        assert result["video_auc"] == pytest.approx(macro_video_auc(scores))
        assert len(result["history"]) == 1
    table = settings.path(settings.compare.table).read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| masm", "| lora", "| probe"]
    assert "2 seeds from 7 on" in table
    assert "masm: lr 0.001, rank 1, subspaces 2" in table


def test_what_is_there_is_not_run_again(settings: Settings) -> None:
    before = times(settings)
    table = settings.path(settings.compare.table).read_bytes()
    main(settings)
    assert times(settings) == before
    assert settings.path(settings.compare.table).read_bytes() == table


def test_what_is_missing_or_made_otherwise_is_run_again(settings: Settings) -> None:
    before = times(settings)
    (settings.root / "compare" / "masm-8.json").unlink()
    (settings.root / "compare" / "masm-7.parquet").unlink()
    (settings.root / "compare" / "probe-7.json").write_text("{")
    edit(settings.root / "params.yaml", {"compare.methods.lora.lr": 2e-3})
    main(load_settings(settings.root / "params.yaml"))
    after = times(settings)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"masm-7.json", "masm-8.json", "probe-7.json", "lora-7.json", "lora-8.json"}


def test_other_data_are_other_runs(settings: Settings) -> None:
    before = times(settings)
    lock_data(settings, {**dict.fromkeys(settings.datasets, "0" * 32), settings.with_role("test")[0]: "1" * 32})
    main(load_settings(settings.root / "params.yaml"))
    assert not set(times(settings).items()) & set(before.items())
