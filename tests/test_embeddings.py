from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from masm import embeddings as module
from masm import registry
from masm.cli import app
from masm.data.stored import decode
from masm.data.table import read_table, write_table
from masm.detector import Detector
from masm.embeddings import (
    COLUMNS,
    every_frame,
    origin_of,
    read_embeddings,
    spread_frames,
    write_embeddings,
)
from masm.errors import UserError
from masm.settings import Settings
from tests.data import tables
from tests.data.tables import named_row
from tests.registry import runs
from tests.serving.workspace import PROFILE, TESTS, make_workspace, own_address, save, tiny_detector, use_detector


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with own_address():
        yield make_workspace(tmp_path / "workspace", tmp_path / "mlflow.db")


def detector_of(settings: Settings) -> Detector:
    return Detector.load(settings.root / "models" / "detector", merged=True)


def expected_embeddings(detector: Detector, settings: Settings, dataset: str) -> np.ndarray:
    """Of a whole table, at once."""
    images = read_table(settings.table(dataset), ["image"])["image"].to_pylist()
    with torch.inference_mode():
        return detector.eval().embed(decode(images).float() / 255).numpy()


def test_the_file_holds_the_embeddings_of_the_frames(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several row groups and batches, none of which divides the table."""
    monkeypatch.setattr(module, "ROW_GROUP", 7)
    smaller = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"batch_size": 5})})
    detector, path, counted = detector_of(settings), settings.root / "new" / "embeddings.parquet", []
    frames = every_frame(settings, ["denoise", "upsample"])
    write_embeddings(path, detector, smaller, frames, {"model": "mine"}, counted.append)
    facts, values = read_embeddings(path)
    assert values.dtype == np.float32
    assert sum(counted) == len(facts) == len(values) == 48
    for name in TESTS:
        own = (facts["dataset"] == name).to_numpy()
        table = read_table(settings.table(name), COLUMNS).to_pandas()
        pd.testing.assert_frame_equal(facts[own].reset_index(drop=True), table)
        np.testing.assert_allclose(values[own], expected_embeddings(detector, settings, name), atol=1e-5)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [7, 7, 7, 3] * 2
    assert json.loads(file.schema_arrow.metadata[b"masm"]) == {"model": "mine"}
    assert str(file.schema_arrow.field("embedding").type) == "fixed_size_list<element: float>[32]"
    assert list(path.parent.iterdir()) == [path]


def test_chosen_frames_are_those_of_the_table(settings: Settings) -> None:
    detector, path = detector_of(settings), settings.root / "embeddings.parquet"
    rows = np.array([20, 3, 11])
    write_embeddings(path, detector, settings, {"denoise": rows, "upsample": rows[:0]}, {})
    facts, values = read_embeddings(path)
    assert facts["video_id"].tolist() == ["v20", "v3", "v11"]
    expected = expected_embeddings(detector, settings, "denoise")
    np.testing.assert_allclose(values, expected[rows], atol=1e-5)
    assert np.abs(values - expected[:3]).max() > 1e-3
    write_embeddings(path, detector, settings, {}, {})
    facts, values = read_embeddings(path)
    assert (len(facts), values.shape) == (0, (0, 32))


def test_frames_are_spread_over_the_videos(tmp_path: Path) -> None:
    """Videos of 1 to 6 frames: of 12 asked for each method, no video gives a second before all gave one."""
    settings = tables.make_settings(tmp_path)
    rows = [
        named_row("judge", "test", f"r{video}", method, frame)
        for method in ("real", "swap")
        for video in range(6)
        for frame in range(video + 1)
    ]
    write_table(settings.table("judge"), rows, [])
    table = read_table(settings.table("judge")).to_pandas()

    def per_video(frames: int) -> dict[str, list[int]]:
        (chosen,) = spread_frames(settings, ["judge"], frames).values()
        assert (np.diff(chosen) > 0).all()
        counts = table.iloc[chosen].groupby(["method", "video_id"]).size()
        return {str(method): sorted(own.tolist()) for method, own in counts.groupby("method")}

    for frames, expected in ((12, [1, 2, 2, 2, 2, 3]), (3, [1, 1, 1]), (99, [1, 2, 3, 4, 5, 6])):
        assert per_video(frames) == {"real": expected, "swap": expected}
    chosen = [
        spread_frames(settings.model_copy(update={"seed": s}), ["judge"], 3)["judge"].tolist() for s in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert spread_frames(settings, ["judge"], 0)["judge"].tolist() == []


def test_the_origin_names_model_and_data(settings: Settings) -> None:
    folder = settings.root / "models" / "detector"
    origin = origin_of(settings, ["denoise"], "mine", folder)
    assert origin["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert origin["data"] == {"denoise": "0" * 32}
    assert origin["model"] == "mine"


def test_a_failure_leaves_the_former_file(settings: Settings) -> None:
    path, detector = settings.root / "embeddings.parquet", detector_of(settings)
    write_embeddings(path, detector, settings, every_frame(settings, ["denoise"]), {})
    before = path.read_bytes()
    with torch.no_grad():
        detector.backbone.patch_embed.proj.bias[0] = torch.nan
    with pytest.raises(UserError, match="24 frames of upsample have an embedding that is not finite"):
        write_embeddings(path, detector, settings, every_frame(settings, ["upsample"]), {})
    assert path.read_bytes() == before
    assert not list(settings.root.glob(".embeddings*"))


def masm_embed(settings: Settings, out: Path, *arguments: str) -> str:
    """What `masm embed` says where it refuses."""
    command = ["embed", *arguments, "--out", str(out), "--params", str(settings.root / "params.yaml")]
    result = CliRunner().invoke(app, command)
    if result.exception is None:
        return ""
    assert isinstance(result.exception, UserError), result.exception
    return str(result.exception)


def test_the_command_writes_the_test_datasets(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert masm_embed(settings, out) == ""
    assert read_embeddings(out)[0]["dataset"].unique().tolist() == settings.with_role("test")
    assert masm_embed(settings, out, "denoise") == ""
    facts, values = read_embeddings(out)
    assert facts["dataset"].unique().tolist() == ["denoise"]
    np.testing.assert_allclose(values, expected_embeddings(detector_of(settings), settings, "denoise"), atol=1e-5)


def test_a_registered_model_embeds_as_its_folder_does(settings: Settings, tmp_path: Path) -> None:
    folder = settings.root / "models" / "detector"
    logged = runs.log(settings, use_detector(settings, tiny_detector(0)))
    runs.register(registry.connect(settings.mlflow), settings, logged, promoted=True)
    save(tiny_detector(1), folder)
    name = settings.mlflow.model
    for uri in (f"models:/{name}@champion", f"models:/{name}/1", "champion"):
        assert masm_embed(settings, tmp_path / "out.parquet", "denoise", "--model", uri) == ""
        expected = expected_embeddings(tiny_detector(0), settings, "denoise")
        np.testing.assert_allclose(read_embeddings(tmp_path / "out.parquet")[1], expected, atol=1e-5)
    for uri, says in (
        (f"models:/{name}@nobody", "there is no models:/"),
        (f"models:/{name}/7", "there is no models:/"),
        ("models:/other@champion", "there is no models:/other"),
        ("models:/other", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ):
        assert says in masm_embed(settings, tmp_path / "out.parquet", "denoise", "--model", uri)


def test_mistakes_are_said_in_one_sentence(settings: Settings, tmp_path: Path) -> None:
    out, text, foreign = (tmp_path / name for name in ("out.parquet", "text.parquet", "foreign.parquet"))
    text.write_text("not a table")
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    assert "there is no dataset 'denoize'" in masm_embed(settings, out, "denoise", "denoize")
    assert "holds no face table" in masm_embed(settings, out, "swap")
    assert "gone holds no detector" in masm_embed(settings, out, "--model", str(tmp_path / "gone"))
    assert "is no Parquet file" in masm_embed(settings, text)
    assert "none of embeddings" in masm_embed(settings, foreign)
    assert "cannot be written" in masm_embed(settings, text / "out.parquet")
    assert text.read_text() == "not a table"
    save(tiny_detector(0), settings.root / "models" / "detector", replace(PROFILE, margin=1.9))
    says = masm_embed(settings, out)
    assert f"crop profile {PROFILE.hash}" in says
    assert replace(PROFILE, margin=1.9).hash in says
    (settings.root / "dvc.lock").unlink()
    assert "run `dvc repro ingest@denoise` first" in masm_embed(settings, out)
    assert not out.exists()
