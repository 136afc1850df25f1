"""What is put under a storage path comes back as it was, and nowhere else."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from masm.storage import recall, store


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_come_back_and_replace_the_former(tmp_path: Path, scheme: str) -> None:
    uri, folder = f"{scheme}{tmp_path}/storage/trial-0.tar", tmp_path / "back"
    folder.mkdir()
    assert not recall(uri, folder)
    for content in (os.urandom(3_000_000), b""):
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / "state.safetensors").write_bytes(content)
        store(tmp_path / "made", uri)
        assert recall(uri, folder)
        assert [path.name for path in folder.iterdir()] == ["state.safetensors"]
        assert (folder / "state.safetensors").read_bytes() == content
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["trial-0.tar"]


def test_an_archive_of_others_writes_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "back").mkdir()
    with tarfile.open(tmp_path / "trial-0.tar", "w") as archive:
        archive.add(tmp_path / "file", arcname="../outside")
    assert recall(str(tmp_path / "trial-0.tar"), tmp_path / "back")
    assert not (tmp_path / "outside").exists()
    assert (tmp_path / "back" / "outside").read_text() == "theirs"
