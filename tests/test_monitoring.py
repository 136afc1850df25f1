"""Batches of files and of tables against a detector's reference, by way of `masm monitor`."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from masm.cli import app
from masm.data.frames import Frames
from masm.data.stored import decode
from masm.detector import Detector, weights_digest
from masm.drift import make_reference, write_reference
from masm.embeddings import every_frame, origin_of, write_embeddings
from masm.errors import CheckFailed, UserError
from masm.monitoring import Batch, observe, read_tables
from masm.serving.files import score_rows, write_rows
from masm.serving.scorer import Scorer
from masm.settings import Settings
from tests.serving.workspace import TESTS, make_workspace, own_address, random_crop, save, tiny_detector

COUNT = 60


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A workspace whose detector was validated on noise."""
    folder = tmp_path_factory.mktemp("monitored")
    with own_address():
        made = make_workspace(folder / "workspace", folder / "mlflow.db")
    detector = Detector.load(made.root / "models" / "detector", merged=True)
    reference = make_reference(detector, noise(1), noise(2), batch_size=32)
    write_reference(made.root / "models" / "detector", reference)
    return made


def noise(key: int) -> Frames:
    numbers = np.arange(COUNT)
    images = [random_crop(key, number) for number in numbers.tolist()]
    landmarks = np.full((COUNT, 5, 2), np.nan, np.float16)
    return Frames(images, numbers % 2, numbers.astype(str), numbers * 0, numbers, numbers, landmarks)


@pytest.fixture(scope="module")
def scorer(settings: Settings) -> Scorer:
    return Scorer(settings.root / "models" / "detector", device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise, and of a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        (folder / f"{number:02}.png").write_bytes(random_crop(3, number))
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same noise with little contrast."""
    folder = tmp_path_factory.mktemp("grey")
    for number in range(COUNT):
        pixels = cv2.imdecode(np.frombuffer(random_crop(3, number), np.uint8), cv2.IMREAD_COLOR)
        (folder / f"{number:02}.png").write_bytes(cv2.imencode(".png", 120 + pixels // 16)[1].tobytes())
    return folder


def command(settings: Settings, *paths: Path) -> tuple[str, BaseException | None]:
    """What `masm monitor` prints, and how it ends."""
    options = ["--model", str(settings.root / "models" / "detector"), "--params", str(settings.root / "params.yaml")]
    ended = CliRunner().invoke(app, ["monitor", *map(str, paths), *options], env={"COLUMNS": "200"})
    return ended.output, ended.exception


def test_files_are_seen_as_the_detector_sees_them(scorer: Scorer, images: Path) -> None:
    done: list[tuple[int, int]] = []
    batch = observe(scorer, [images], lambda count, total: done.append((count, total)))
    pixels = decode([path.read_bytes() for path in sorted(images.glob("*.png"))]).float() / 255
    with torch.inference_mode():
        scores, embeddings = torch.sigmoid(scorer.detector(pixels)), scorer.detector.embed(pixels)
    np.testing.assert_allclose(batch.sample.scores, scores.numpy(), atol=1e-5)
    assert batch.sample.embeddings is not None
    np.testing.assert_allclose(batch.sample.embeddings, embeddings.numpy(), atol=1e-5)
    assert len(np.unique(batch.sample.recordings)) == COUNT
    assert batch.outcomes == Counter({"ok": COUNT, "not an image": 1})
    assert done[-1] == (COUNT + 1, COUNT + 1)


def test_a_batch_like_the_validation_passes(settings: Settings, images: Path) -> None:
    printed, ended = command(settings, images)
    assert ended is None, printed
    counts = f"{COUNT} frames of {COUNT} recordings"
    assert f"{counts}, reference: {counts}; files or videos: {COUNT} ok, 1 not an image" in printed
    assert "component 8" in printed
    assert "drifted" not in printed


def test_a_batch_of_other_images_has_drifted(settings: Settings, grey: Path) -> None:
    printed, ended = command(settings, grey)
    assert isinstance(ended, CheckFailed)
    assert "KS of embeddings, component 1" in str(ended)
    assert "drifted" in printed


def test_embeddings_of_face_tables_are_taken(settings: Settings, scorer: Scorer, tmp_path: Path) -> None:
    frames = every_frame(settings, TESTS)
    path = tmp_path / "embeddings.parquet"
    write_embeddings(path, scorer.detector, settings, frames, origin_of(settings, TESTS, "mine", scorer.folder))
    batch = read_tables(scorer, [path, path])
    scored = observe(scorer, [path]).sample
    np.testing.assert_array_equal(batch.sample.scores, np.tile(scored.scores, 2))
    assert len(np.unique(batch.sample.recordings)) == 96  # 24 videos of each dataset, and each file's are its own
    assert batch.outcomes == Counter({"ok": 96})
    with torch.inference_mode():
        first = decode([random_crop(0, 0)]).float() / 255
        expected = torch.sigmoid(scorer.detector(first)).item()
    assert scored.scores[0] == pytest.approx(expected, abs=1e-5)
    printed, ended = command(settings, path)
    assert ended is None, printed


def test_scores_of_files_are_taken(settings: Settings, scorer: Scorer, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_rows(path, score_rows(scorer, "mine", sorted(images.iterdir()), True, lambda result: None))
    batch, direct = observe(scorer, [path]), observe(scorer, [images])
    assert batch.sample.embeddings is None
    np.testing.assert_allclose(np.sort(batch.sample.scores), np.sort(direct.sample.scores), atol=1e-6)
    assert batch.outcomes == direct.outcomes
    printed, ended = command(settings, path)
    assert ended is None, printed
    assert "component" not in printed


def scored(scorer: Scorer, kinds: list[tuple[str, str, float | None]]) -> list[dict[str, object]]:
    by = {"model": "mine", "model_sha256": weights_digest(scorer.folder)}
    return [{"path": path, "kind": kind, "outcome": "ok", "score": score} | by for path, kind, score in kinds]


def test_videos_count_by_their_frames(scorer: Scorer, tmp_path: Path) -> None:
    video = [("a.mp4", "video", 0.3), ("a.mp4", "frame", 0.2), ("a.mp4", "frame", 0.4)]
    rows = scored(scorer, [*video, ("b.png", "image", 0.9)])
    write_rows(tmp_path / "scores.parquet", rows)
    batch = observe(scorer, [tmp_path / "scores.parquet"])
    assert sorted(batch.sample.scores) == [0.2, 0.4, 0.9]
    assert batch.sample.recordings[0] == batch.sample.recordings[1] != batch.sample.recordings[2]
    assert batch.outcomes == Counter({"ok": 2})
    write_rows(tmp_path / "videos.parquet", rows[:1])
    with pytest.raises(UserError, match="masm score --frames"):
        observe(scorer, [tmp_path / "videos.parquet"])


def test_tables_of_another_model_are_refused(settings: Settings, scorer: Scorer, images: Path, tmp_path: Path) -> None:
    """Whatever it is called: a detector that was trained again has the folder of the former one."""
    save(tiny_detector(1), tmp_path / "detector")
    other, scores, embeddings = Scorer(tmp_path / "detector"), tmp_path / "a.parquet", tmp_path / "b.parquet"
    parts = [score_rows(each, "mine", [images / "00.png"], False, lambda result: None) for each in (other, scorer)]
    write_rows(scores, chain.from_iterable(parts))
    frames, origin = every_frame(settings, TESTS), origin_of(settings, TESTS, "mine", other.folder)
    write_embeddings(embeddings, other.detector, settings, frames, origin)
    for path in (scores, embeddings):
        for each in (scorer, other) if path == scores else (scorer,):
            with pytest.raises(UserError, match="was made by mine, whose weights are others"):
                observe(each, [path])
    assert isinstance(observe(other, [embeddings]), Batch)


def test_what_cannot_be_compared_is_named(settings: Settings, scorer: Scorer, images: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "scores.parquet", scored(scorer, [("b.png", "image", 0.9)]))
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UserError, match="some are not"):
        observe(scorer, [tmp_path / "scores.parquet", images])
    with pytest.raises(UserError, match="no Parquet file"):
        observe(scorer, [tmp_path / "text.parquet"])
    with pytest.raises(UserError, match=r"scores\.csv is a CSV file: write it as Parquet"):
        observe(scorer, [tmp_path / "scores.csv"])
    with pytest.raises(UserError, match="neither by"):
        observe(scorer, [settings.table("upsample") / "faces-00000.parquet"])
    save(tiny_detector(1), tmp_path / "detector")
    other = Scorer(tmp_path / "detector", device="cpu")
    printed = CliRunner().invoke(
        app,
        [
            "monitor",
            str(images),
            "--model",
            str(tmp_path / "detector"),
            "--params",
            str(settings.root / "params.yaml"),
        ],
    )
    assert "train it again" in str(printed.exception)
    assert isinstance(observe(other, [images]), Batch)
