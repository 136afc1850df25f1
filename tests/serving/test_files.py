"""`masm score`: every file is a row, whatever is wrong with it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from masm.data.faces import CropProfile
from masm.data.procedural import draw_face
from masm.errors import UserError
from masm.serving.files import SCHEMA, check_out, find_media, score_rows, table_of, write_rows
from masm.serving.many import Result, image_task, score_many
from masm.serving.results import ImageResult
from masm.serving.scorer import BATCH_SIZE, Scorer
from pipelines import promote
from tests.data.videos import numbered, scene, write_video
from tests.serving.workspace import ROOT, SIZE, make_workspace, own_address, random_crop, save, tiny_detector

CASCADE = CropProfile("cascade", SIZE, 1.3, None, frames=6)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """One that finds faces by OpenCV's cascade."""
    folder = tmp_path_factory.mktemp("cascade") / "detector"
    save(tiny_detector(1), folder, CASCADE)
    return Scorer(folder)


def draw(path: Path, *people: int) -> Path:
    """A picture of some drawn people, each larger than the one before."""
    places = {
        (20 + 300 * place, 20): draw_face(0, person, 0, 200 + 40 * place).image for place, person in enumerate(people)
    }
    cv2.imwrite(str(path), scene(places)[:, :, ::-1])
    return path


def rows_of_files(scorer: Scorer, files: list[Path], frames: bool = False) -> pd.DataFrame:
    seen: list[Result] = []
    rows = pd.DataFrame(score_rows(scorer, "mine", files, frames, seen.append), columns=SCHEMA.names)
    assert len(seen) == len(files)
    return rows


def test_paths_are_found_once_each(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/d.mp4", "a/notes.txt", "z.unknown"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    named = [tmp_path / "a" / "c.png", tmp_path, tmp_path / "a" / ".." / "b.JPG", tmp_path / "z.unknown"]
    found = [path.relative_to(tmp_path).as_posix() for path in find_media(named)]
    assert found == ["a/c.png", "a/d.mp4", "b.JPG", "gone.png", "z.unknown"]
    with pytest.raises(UserError, match="no file or folder"):
        find_media([tmp_path / "missing.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image or video"):
        find_media([tmp_path / "empty"])


def test_every_file_is_a_row_and_says_what_is_wrong(scorer: Scorer, tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 0)
    draw(tmp_path / "1.png", 0, 1)
    (tmp_path / "2.png").write_text("no image")
    (tmp_path / "3.png").touch()
    (tmp_path / "4.png").symlink_to("nowhere.png")
    (tmp_path / "5.png").write_bytes(random_crop(1))
    (tmp_path / "6.jpg").write_bytes((tmp_path / "0.png").read_bytes())  # its bytes say what it is
    face = draw_face(0, 0, 0, 220).image
    write_video(tmp_path / "7.mp4", [scene({(20 + 4 * number, 40): face}) for number in range(12)])
    write_video(tmp_path / "8.mp4", numbered(6))
    (tmp_path / "9.mp4").write_text("no video")
    (tmp_path / "a.txt").write_text("no video")
    files = sorted(tmp_path.iterdir())
    rows = rows_of_files(scorer, files)
    assert rows["path"].tolist() == [str(file) for file in files]
    assert rows["kind"].tolist() == ["image"] * 7 + ["video"] * 4
    begin = [
        "ok",
        "ok",
        "not an image",
        "empty file",
        "cannot be read: No such file",
        "no face",
        "ok",
        "ok",
        "no face",
    ]
    begin += ["cannot be opened as a video"] * 2
    for outcome, expected in zip(rows["outcome"], begin, strict=True):
        assert outcome.startswith(expected)
    assert rows["score"].notna().tolist() == [outcome == "ok" for outcome in rows["outcome"]]
    for index, file in enumerate(files[:2]):
        alone = scorer.score_image(file.read_bytes())
        assert rows["score"][index] == pytest.approx(alone.score, abs=1e-6)
        assert rows["faces"][index] == len(alone.faces)
        assert tuple(rows.loc[index, ["x", "y", "width", "height"]]) == alone.faces[0].box
    video = scorer.score_video(files[7])
    assert (rows["score"][7], rows["verdict"][7]) == (pytest.approx(video.score, abs=1e-6), video.verdict)
    assert rows["faces"][7] == len(video.frames)
    with_frames = rows_of_files(scorer, files[6:9], frames=True)
    assert with_frames["kind"].tolist() == ["image", "video", *["frame"] * len(video.frames), "video"]
    frames = with_frames[with_frames["kind"] == "frame"]
    assert frames["frame_index"].tolist() == [frame.frame_index for frame in video.frames]
    assert frames["score"].tolist() == pytest.approx([frame.score for frame in video.frames], abs=1e-6)
    assert frames["score"].mean() == pytest.approx(with_frames["score"][1], abs=1e-9)


def test_scores_do_not_depend_on_what_is_scored_beside(scorer: Scorer, tmp_path: Path) -> None:
    files = [draw(tmp_path / f"{person}.png", person, person + 1) for person in range(4)]
    (tmp_path / "bad.png").touch()
    many = [*files, tmp_path / "bad.png"] * (BATCH_SIZE // 3)
    rows = rows_of_files(scorer, many)
    alone = {str(file): scorer.score_image(file.read_bytes()).score for file in files}
    for path, score in zip(rows["path"], rows["score"], strict=True):
        assert np.isnan(score) if path.endswith("bad.png") else score == pytest.approx(alone[path], abs=1e-6)


def test_still_gifs_are_images_and_animated_ones_say_what_they_are(scorer: Scorer, tmp_path: Path) -> None:
    draw(tmp_path / "face.png", 0)
    with Image.open(tmp_path / "face.png") as image:
        image.save(tmp_path / "still.GIF")
        image.save(tmp_path / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    rows = rows_of_files(scorer, find_media([tmp_path]))
    assert rows["kind"].tolist() == ["image"] * 3
    assert rows["outcome"].tolist() == ["ok", "animated: more than one image in the file", "ok"]


def test_without_pyav_the_images_are_scored(scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    files = [tmp_path / "clip.mp4", draw(tmp_path / "face.png", 0)]
    files[0].touch()
    rows = rows_of_files(scorer, files)
    assert "pip install 'masm[video]'" in rows["outcome"][0]
    assert rows["outcome"][1] == "ok"


def test_few_wait_for_the_detector(scorer: Scorer) -> None:
    """However many there are: or a folder of videos would fill the memory."""
    began = []

    def find(number: int) -> list:
        began.append(number)
        return []

    results = score_many(scorer, (image_task(scorer, partial(find, number)) for number in range(500)))
    assert next(results) == ImageResult("no face")
    assert len(began) <= 3 * BATCH_SIZE
    assert len(list(results)) == 499
    assert sorted(began) == list(range(500))


def test_parquet_csv_and_the_table_say_the_same(scorer: Scorer, tmp_path: Path) -> None:
    files = [draw(tmp_path / 'a, [b] "c".png', 0), tmp_path / os.fsdecode(b"\xff.png"), tmp_path / "v.mp4"]
    files[1].touch()
    write_video(files[2], [scene({(20 + 4 * number, 40): draw_face(0, 0, 0, 220).image}) for number in range(8)])
    rows = list(score_rows(scorer, "mine", files, True, lambda result: None))
    for name in ("out.parquet", "out.csv"):
        (tmp_path / name).write_text("former")
        write_rows(tmp_path / name, iter(rows))
    parquet, csv = pd.read_parquet(tmp_path / "out.parquet"), pd.read_csv(tmp_path / "out.csv")
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False, check_exact=True)
    assert parquet["path"].tolist()[:2] == [str(files[0]), f"{tmp_path}/\N{REPLACEMENT CHARACTER}.png"]
    assert parquet.columns.tolist() == SCHEMA.names
    assert set(parquet["model"]) == {"mine"}
    assert set(parquet["model_sha256"]) == {
        hashlib.sha256((scorer.folder / "model.safetensors").read_bytes()).hexdigest()
    }
    console = Console(width=400, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table_of(rows))
    text = console.export_text()
    assert 'a, [b] "c".png' in text
    assert f"{rows[0]['score']:.4f}" in text


def test_a_file_that_fails_half_way_leaves_the_former_one(tmp_path: Path) -> None:
    def rows() -> object:
        yield {"path": "a"}
        raise UserError("stopped")

    (tmp_path / "out.csv").write_text("former")
    with pytest.raises(UserError):
        write_rows(tmp_path / "out.csv", rows())
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "former"


def test_out_must_be_a_table_in_a_folder_that_is_there(tmp_path: Path) -> None:
    check_out(tmp_path / "a.CSV")
    with pytest.raises(UserError, match=r"must end in \.parquet or \.csv"):
        check_out(tmp_path / "a.txt")
    with pytest.raises(UserError, match="there is no folder"):
        check_out(tmp_path / "missing" / "a.csv")


@pytest.mark.slow
def test_the_command_scores_by_the_champion_and_by_a_folder(tmp_path: Path) -> None:
    with own_address():
        settings = make_workspace(tmp_path / "masm" / "workspace", tmp_path / "mlflow.db")
        promote.main(settings)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(random_crop(8, number))
    (tmp_path / "bad.png").touch()
    expected = Scorer(settings.root / "models" / "detector").score_image(random_crop(8, 0)).score
    named = {f"models:/{settings.mlflow.model}/1": [], "models/detector": ["--model", "models/detector"]}
    for name, model in named.items():
        out = tmp_path / "scores.parquet"
        done = masm(settings.root, "score", str(tmp_path), "--out", str(out), *model)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, f"{out}: 3 of 4 files have a score")
        rows = pd.read_parquet(out)
        assert [Path(path).name for path in rows["path"]] == ["0.png", "1.png", "2.png", "bad.png"]
        assert rows["score"][0] == pytest.approx(expected, abs=1e-6)
        assert rows["outcome"].tolist() == ["ok"] * 3 + ["empty file"]
        assert set(rows["model"]) == {name}
    missing = masm(settings.root, "score", str(tmp_path / "missing.png"))
    assert missing.returncode == 2
    assert "is no file or folder" in missing.stderr
    assert "Traceback" not in missing.stderr


def masm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    command = [sys.executable, "-c", "from masm.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
