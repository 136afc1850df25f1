"""Views for pretraining: crops with regions, from drawn faces and from a folder of photographs."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from masm.data.importers.photograph import Unusable
from masm.data.regions import REGIONS
from masm.data.views import Viewing, Views, digest_of, drawn_people, make_views, photographs_in
from masm.errors import UserError


def drawn(people: int = 3) -> list[Viewing]:
    return [Viewing(photo, 4, 32, 8, seed=3) for photo in drawn_people(3, people, 1)]


def test_views_are_reproducible_crops_with_regions() -> None:
    views = make_views(drawn(), lambda done: None)
    assert views.images.shape == (12, 32, 32, 3)
    assert views.regions.shape == (12, 16)
    assert views.regions.max() < len(REGIONS)
    again = drawn()[1]()
    assert isinstance(again, Views)
    assert np.array_equal(views.images[4:8], again.images)
    assert len({image.tobytes() for image in views.images}) == len(views)


def test_views_are_stored_as_they_are(tmp_path: Path) -> None:
    views = Views(np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3), np.array([[3]], np.uint8), {"a.jpg": "empty"})
    views.save(tmp_path / "views.safetensors")
    loaded = Views.load(tmp_path / "views.safetensors")
    assert np.array_equal(loaded.images, views.images)
    assert np.array_equal(loaded.regions, views.regions)
    assert loaded.unusable == views.unusable
    replace(views, unusable={}).save(tmp_path / "views.safetensors")
    assert Views.load(tmp_path / "views.safetensors").unusable == {}


def test_photographs_without_a_face_are_named_not_dropped(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    (folder / "more").mkdir(parents=True)
    originals = sorted((shared / "faces" / "portraits").glob("*.jpg"))
    shutil.copyfile(originals[0], folder / "more" / "whole.jpg")
    (folder / "cut.jpg").write_bytes(originals[1].read_bytes()[:5000])
    cv2.imwrite(str(folder / "grey.png"), np.full((200, 200, 3), 128, np.uint8))
    photographs = photographs_in(folder, shared / "models" / "face_detection_yunet_2023mar.onnx")
    assert [photo.name for photo in photographs] == ["cut.jpg", "grey.png", "more/whole.jpg"]
    views = make_views([Viewing(photo, 3, 64, 8, seed=1) for photo in photographs], lambda done: None)
    assert views.images.shape == (3, 64, 64, 3)
    assert set(views.unusable) == {"cut.jpg", "grey.png"}
    assert "cannot be decoded" in views.unusable["cut.jpg"]
    assert "no face" in views.unusable["grey.png"]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
             for name in ("cut.jpg", "grey.png", "more/whole.jpg")]  # fmt: skip
    assert digest_of(photographs) == hashlib.sha256("".join(lines).encode()).hexdigest()
    (folder / "folder.jpg").mkdir()
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with_gone = photographs_in(folder, shared / "models" / "face_detection_yunet_2023mar.onnx")
    assert [photo.name for photo in with_gone] == ["cut.jpg", "gone.jpg", "grey.png", "more/whole.jpg"]
    assert digest_of(with_gone) == digest_of(photographs)
    gone = Viewing(with_gone[1], 3, 64, 8, seed=1)()
    assert isinstance(gone, Unusable)
    assert "No such file" in gone.reason
    with pytest.raises(UserError, match=r"none of 1 photographs gave a face.*no face"):
        make_views([Viewing(photographs[1], 3, 64, 8, seed=1)], lambda done: None)


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain\.folder"):
        photographs_in(tmp_path, tmp_path / "yunet.onnx")
