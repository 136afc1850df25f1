from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from masm.data import ingest as module
from masm.data.checks import run_checks
from masm.data.faces import crop
from masm.data.forged import make_recipe, make_tasks
from masm.data.ingest import ingest
from masm.data.table import read_failures, read_table
from masm.errors import CheckFailed, UserError
from masm.settings import Settings, load_settings
from tests.conftest import ROOT
from tests.pipeline.workspace import SMALL, edit
from tests.waiting import wait_for

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def make_settings(folder: Path, **changes: object) -> Settings:
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    edit(folder / "params.yaml", {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}})
    return load_settings(folder / "params.yaml")


def photographs_folder(folder: Path, people: int) -> Path:
    """Drawn portraits as files, one of them cut short and one empty."""
    from masm.data.procedural import draw_face

    folder.mkdir()
    for person in range(people):
        image = draw_face(3, person, 0, 256).image
        cv2.imwrite(str(folder / f"{person:03d}_a.jpg"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    whole = (folder / "000_a.jpg").read_bytes()
    (folder / "000_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "001_empty.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = make_settings(tmp_path_factory.mktemp("workspace"))
    for name in settings.datasets:
        ingest(settings, name, lambda done, total: None)
    return settings


def test_every_photograph_gives_reals_and_fakes(ingested: Settings) -> None:
    rows = read_table(ingested.table("second-camera")).to_pandas()
    people = rows["identity"].nunique()
    assert people == round(0.28 * 24)
    counts = rows.groupby("method").size().to_dict()
    assert counts == dict.fromkeys(("real", "swap", "reenact"), people * ingested.crop.frames)
    assert (rows["label"] == (rows["method"] != "real")).all()
    assert rows["sample_id"].is_unique
    assert set(rows["split"]) == {"test"}
    image = cv2.imdecode(np.frombuffer(rows["image"][0], np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (64, 64, 3)
    swaps = rows[rows["method"] == "swap"]
    assert [sources[0] for sources in swaps["sources"]] == swaps["video_id"].tolist()
    assert {len(sources) for sources in swaps["sources"]} == {2}
    assert json.loads(swaps["forge_parameters"].iloc[0])["method"] == "swap"


def test_real_and_fake_differ_inside_the_mask_alone_before_compression(ingested: Settings) -> None:
    """Reals and fakes go the same way but for the forging: same square, same quality."""
    rows = read_table(ingested.table("upsample")).to_pandas()
    pairs = rows.pivot(index=["video_id", "frame_index"], columns="method", values=["image", "mask", "compression"])
    assert (pairs["compression"]["real"] == pairs["compression"]["upsample"]).all()
    for _, pair in pairs.iterrows():
        real, fake = (
            cv2.imdecode(np.frombuffer(pair["image"][name], np.uint8), cv2.IMREAD_COLOR).astype(int)
            for name in ("real", "upsample")
        )
        mask = cv2.imdecode(np.frombuffer(pair["mask"]["upsample"], np.uint8), cv2.IMREAD_GRAYSCALE)
        far = cv2.dilate(mask, np.ones((35, 35), np.uint8)) == 0  # JPEG spreads a change over 16 x 16 pixels
        assert np.abs(real - fake)[far].max(initial=0) <= 2
        assert np.abs(real - fake)[mask > 128].mean() > 0.5


def test_the_table_does_not_depend_on_the_number_of_processes(
    ingested: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 1)
    settings = make_settings(tmp_path)
    ingest(settings, "selfblend", lambda done, total: None)
    assert not (settings.root / "data" / "work" / "selfblend").exists()
    for name in ("faces-00000.parquet", "failures.parquet", "outcomes.json"):
        again = (settings.table("selfblend") / name).read_bytes()
        assert again == (ingested.table("selfblend") / name).read_bytes()


def test_the_stored_crop_is_the_serving_crop(ingested: Settings) -> None:
    """What ingest stores is what `crop` gives for the published image and the recorded box."""
    task = make_tasks(ingested, "denoise")[0]
    row = task.run().rows[0]
    image = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    plain = crop(task.photograph.face().image, np.array(row["bbox"]), make_recipe(ingested, "denoise").profile)
    best = min(np.abs(image.astype(int) - one.astype(int)).mean() for one in (plain, plain[:, ::-1]))
    assert best < 25  # the same face, but for jitter, noise and compression


def test_landmarks_are_told_in_the_crop(ingested: Settings) -> None:
    """Each jittered crop has its own; the image-left eye stays the first in those that are mirrored."""
    rows = read_table(ingested.table("denoise"), ["video_id", "frame_index", "method", "crop_landmarks"]).to_pylist()
    points = np.array([row["crop_landmarks"] for row in rows]).reshape(-1, 5, 2)
    assert ((points > 0) & (points < ingested.crop.size)).all()
    assert (points[:, 0, 0] < points[:, 1, 0]).all()
    assert (points[:, 3, 0] < points[:, 4, 0]).all()
    of = {(row["video_id"], row["method"], row["frame_index"]): own for row, own in zip(rows, points, strict=True)}
    for (video, method, frame), own in of.items():
        assert (own == of[video, "real", frame]).all()  # a forgery is cut out as its real is
        assert frame == 0 or not np.allclose(own, of[video, method, 0], atol=0.1)


def test_a_dataset_that_changes_its_role_leaves_no_table_behind(tmp_path: Path) -> None:
    for role in ("test", "validate"):
        entry = {"role": role, "camera": "compact", "forgeries": ["denoise"]}
        settings = make_settings(tmp_path, datasets={"people": entry})
        ingest(settings, "people", lambda done, total: None)
        tables = [path.parent for path in (tmp_path / "data").rglob("faces-*.parquet")]
        assert tables == [settings.table("people")] == [tmp_path / "data" / role / "people"]


def test_aligned_crops_go_by_the_landmarks(ingested: Settings) -> None:
    """The faces that are held most at a slant look more like the aligned crop than like the plain one."""
    recipe = make_recipe(ingested, "denoise")
    aligned = replace(recipe, profile=replace(recipe.profile, alignment="landmarks"))
    distances = []
    for task in make_tasks(ingested, "denoise"):
        face = task.photograph.face()
        image = cv2.imdecode(
            np.frombuffer(replace(task, recipe=aligned).run().rows[0]["image"], np.uint8), cv2.IMREAD_COLOR_RGB
        )
        assert face.landmarks is not None
        eyes = face.landmarks[1] - face.landmarks[0]
        crops = [crop(face.image, face.box, one.profile, landmarks=face.landmarks) for one in (aligned, recipe)]
        errors = [min(np.abs(image.astype(int) - view).mean() for view in (one, one[:, ::-1])) for one in crops]
        distances.append((abs(eyes[1] / eyes[0]), *errors))
    _, to_aligned, to_plain = np.transpose(sorted(distances)[-4:])
    assert to_aligned.mean() < to_plain.mean()


def test_donors_are_other_people_of_the_same_place(ingested: Settings) -> None:
    for task in make_tasks(ingested, "swap"):
        assert task.donor.identity != task.photograph.identity
    places = {task.photograph.identity: task.place for task in make_tasks(ingested, "swap")}
    assert all(places[task.donor.identity] == task.place for task in make_tasks(ingested, "swap"))


def test_sound_tables_pass_and_the_docs_are_written(ingested: Settings, tmp_path: Path) -> None:
    assert run_checks(ingested, tmp_path / "docs", lambda name: None) == []
    assert (tmp_path / "docs" / "index.html").is_file()


def test_corrupt_photographs_are_listed_and_never_replaced(tmp_path: Path) -> None:
    folder = photographs_folder(tmp_path / "people", 12)
    settings = make_settings(
        tmp_path,
        faces__source="photographs",
        faces__folder=str(folder),
        crop__detector="cascade",
        checks__coverage=0.5,
        faces__shares={"train": 0.3, "validate": 0.3, "test": 0.4},
        datasets={
            role: {"role": role, "camera": "compact", "forgeries": ["denoise"]}
            for role in ("train", "validate", "test")
        },
    )
    failures = []
    for name in settings.datasets:
        ingest(settings, name, lambda done, total: None)
        failures += read_failures(settings.table(name)).to_pylist()
    unreadable = {row["video_id"]: row["reason"] for row in failures if row["outcome"] == "unreadable"}
    assert set(unreadable) == {"000_cut", "001_empty"}
    assert unreadable["001_empty"] == "empty file"
    kept = {video for name in settings.datasets for video in read_table(settings.table(name))["video_id"].to_pylist()}
    no_face = {row["video_id"] for row in failures if row["outcome"] == "no face"}
    assert kept | no_face == {f"{person:03d}_a" for person in range(12)}
    assert not kept & set(unreadable)


@pytest.mark.parametrize(
    ("changes", "dataset", "says"),
    [
        ({}, "swop", "params.yaml has no dataset 'swop'"),
        ({"datasets__swap__camera": "holga"}, "swap", "there is no camera 'holga'"),
        ({"datasets__swap__forgeries": ["swapp"]}, "swap", "there is no 'swapp'"),
        (
            {"faces__source": "photographs", "faces__folder": ".", "crop__detector": "cascade"},
            "swap",
            "needs landmarks, which the cascade does not give",
        ),
        (
            {"faces__source": "photographs", "faces__folder": "nowhere", "crop__detector": "cascade"},
            "denoise",
            "nowhere (faces.folder) holds no photographs",
        ),
    ],
)
def test_what_does_not_fit_together_is_said(
    tmp_path: Path, changes: dict[str, object], dataset: str, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        ingest(make_settings(tmp_path, **changes), dataset, lambda done, total: None)
    assert says in str(caught.value)


def test_too_few_faces_fail_with_the_reason_and_the_work_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photographs_folder(tmp_path / "people", 12)
    for file in folder.glob("*_[ce]*.jpg"):
        file.unlink()
    for person in range(12):
        (folder / f"{person:03d}_b.jpg").touch()
    changes: dict[str, object] = {
        "faces__source": "photographs",
        "faces__folder": str(folder),
        "faces__shares": {"train": 0.4, "validate": 0.3, "test": 0.3},
        "crop__detector": "cascade",
        "datasets": {"people": {"role": "train", "camera": "compact", "forgeries": ["denoise"]}},
    }
    settings = make_settings(tmp_path, **changes)
    with pytest.raises(
        CheckFailed, match=r"datasets.people: \d+ of 20 videos gave a face, checks.coverage asks for 95%"
    ):
        ingest(settings, "people", lambda done, total: None)
    outcomes = json.loads((settings.table("people") / "outcomes.json").read_text())
    assert outcomes["unreadable"] == 10  # an empty file of each of 5 people, as real and as fake
    assert sum(outcomes.values()) == 20
    tasks = len(make_tasks(settings, "people"))
    started: list[object] = []
    monkeypatch.setattr(module, "ProcessPoolExecutor", counting(started))
    ingest(make_settings(tmp_path, **changes, checks__coverage=0.1), "people", lambda done, total: None)
    assert len(started) == 5 < tasks  # those that failed


def counting(started: list[object]) -> type[ProcessPoolExecutor]:
    """A pool that keeps what it was given to do."""

    class Pool(ProcessPoolExecutor):
        def submit(self, function: object, /, *arguments: object, **options: object) -> Any:  # type: ignore[override]
            started.append(arguments)
            return super().submit(function, *arguments, **options)  # type: ignore[arg-type]

    return Pool


@pytest.mark.slow
def test_a_killed_ingest_goes_on_where_it_was(
    ingested: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "pipelines.ingest", "swap"], cwd=tmp_path, env=ENVIRONMENT)
    work = tmp_path / "data" / "work" / "swap"
    wait_for("three parts", lambda: len(parts_in(work)) >= 3, pause=0.01, process=process)
    parts = parts_in(work)
    process.kill()
    process.wait()
    wait_for("the end of its processes", lambda: not children_of(tmp_path), pause=0.01)
    done = {part: part.stat().st_mtime_ns for part in parts if part.exists()}
    assert len(done) >= 3
    assert not settings.table("swap").exists()
    started: list[object] = []
    monkeypatch.setattr(module, "ProcessPoolExecutor", counting(started))
    ingest(settings, "swap", lambda finished, total: None)
    assert len(started) <= len(make_tasks(settings, "swap")) - len(done)
    for name in ("faces-00000.parquet", "failures.parquet", "outcomes.json"):
        assert (settings.table("swap") / name).read_bytes() == (ingested.table("swap") / name).read_bytes()


def parts_in(work: Path) -> list[Path]:
    """What is done of a table."""
    return list(work.glob("*/[0-9]*.parquet"))


def children_of(folder: Path) -> list[int]:
    """Processes that work in a folder."""
    return [one.pid for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(folder)]


def test_a_full_disk_is_said_and_the_former_table_stays(ingested: Settings, tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    settings.table("denoise").parent.mkdir(parents=True)
    shutil.copytree(ingested.table("denoise"), settings.table("denoise"))

    def full(jobs: object) -> Iterator[None]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    with pytest.raises(UserError, match=r"no space is left below .*: free some; what is done is kept"):
        ingest(settings, "denoise", lambda done, total: None, full)
    assert read_table(settings.table("denoise")).equals(read_table(ingested.table("denoise")))


@pytest.mark.ray
def test_a_cluster_gives_the_same_table(ingested: Settings, tmp_path: Path) -> None:
    from masm.cluster import connected
    from pipelines.ingest import run_on_cluster

    settings = make_settings(tmp_path, ray__storage=str(tmp_path / "ray"))
    with connected(settings.ray, cpus=2):
        ingest(settings, "denoise", lambda done, total: None, run_on_cluster)
    for name in ("faces-00000.parquet", "failures.parquet", "outcomes.json"):
        assert (settings.table("denoise") / name).read_bytes() == (ingested.table("denoise") / name).read_bytes()
