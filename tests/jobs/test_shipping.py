"""What a job takes along, and what it could not reach."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from masm.data.remote import check_pushed, shared_remote
from masm.errors import UserError
from masm.jobs.shipping import UPLOAD_BYTES, check_reach, check_study, collect
from masm.settings import Settings, load_settings
from tests.jobs.repository import copy_repository, make_repository, set_remote
from tests.pipeline.workspace import edit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("made") / "repository")


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    return copy_repository(made, tmp_path / "copy")


def settings_of(workspace: Path, **changes: object) -> Settings:
    edit(workspace / "params.yaml", {key.replace("__", "."): value for key, value in changes.items()})
    return load_settings(workspace / "params.yaml")


def test_code_and_settings_go_and_data_stay(workspace: Path, tmp_path: Path) -> None:
    repository = workspace.parents[1]
    for name in ("docs/page.md", "runs/other/params.yaml", "data/secret.bin", "runs/own/weights.safetensors"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x")
    shipment = collect(settings_of(workspace))
    shipment.write(tmp_path / "shipped")
    there = {path.relative_to(tmp_path / "shipped").as_posix() for path in (tmp_path / "shipped").rglob("*")}
    files = {path for path in there if (tmp_path / "shipped" / path).is_file()}
    assert shipment.workspace == "runs/own"
    assert {"masm/environment.py", "pipelines/train.py", ".dvc/config", "requirements.lock"} <= files
    assert {f"runs/own/{name}" for name in ("params.yaml", "dvc.yaml", "dvc.lock", "weights.safetensors")} <= files
    assert not [path for path in files if path.startswith(("docs", "data", "runs/other", ".git/", "runs/own/data"))]


def test_code_that_lies_elsewhere_goes_too(workspace: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        (alone / name).write_bytes((workspace / name).read_bytes())
    (alone / ".dvc").mkdir()
    subprocess.run(["git", "init", "-q"], cwd=alone, check=True)
    shipment = collect(settings_of(alone, code=str(workspace.parents[1])))
    assert shipment.workspace == "."
    assert {"params.yaml", "dvc.lock", "masm/environment.py", "pipelines/train.py", "pyproject.toml"} <= set(
        shipment.files
    )
    assert "runs/own/params.yaml" not in shipment.files


def test_too_much_names_what_is_large(workspace: Path) -> None:
    with (workspace / "vit_large.safetensors").open("wb") as file:
        file.truncate(UPLOAD_BYTES)
    with pytest.raises(UserError, match=r"Ray takes 512; the largest are runs/own/vit_large.safetensors \(512 MiB\)"):
        collect(settings_of(workspace))


def test_a_name_that_is_not_utf8_is_said_where_it_would_go_along(workspace: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (workspace.parents[1] / "docs").mkdir(exist_ok=True)
    (workspace.parents[1] / "docs" / name).touch()
    collect(settings_of(workspace))
    (workspace / name).touch()
    with pytest.raises(UserError, match=r"not UTF-8: rename runs/own/caf\\xe9\.txt, or take it out of git"):
        collect(settings_of(workspace))


@pytest.mark.parametrize(
    ("remote", "elsewhere", "reached"),
    [
        ("../../remote", False, False),  # seen from the job's copy, it is another place
        ("~/.local/share/masm/dvc", False, True),
        ("~/.local/share/masm/dvc", True, False),
        ("/mnt/masm", True, True),
        ("s3://bucket/masm", True, True),
    ],
)
def test_a_remote_of_this_machine_alone_is_refused(
    workspace: Path, remote: str, elsewhere: bool, reached: bool
) -> None:
    set_remote(workspace.parents[1], remote)
    assert shared_remote(workspace.parents[1]) == remote
    settings = settings_of(workspace, ray__storage="/mnt/ray")
    if reached:
        check_reach(settings, collect(settings), elsewhere)
    else:
        with pytest.raises(UserError, match=r"the DVC remote .* cannot be reached by the cluster's nodes"):
            check_reach(settings, collect(settings), elsewhere)


def test_storage_and_weights_of_this_machine_alone_are_refused(workspace: Path) -> None:
    settings = settings_of(workspace, ray__storage="~/ray")
    check_reach(settings, collect(settings), elsewhere=False)
    with pytest.raises(UserError, match=r"ray.storage is .*, in this machine's home folder"):
        check_reach(settings, collect(settings), elsewhere=True)
    settings = settings_of(workspace, ray__storage="work/ray")  # a job would write into its own folder
    with pytest.raises(UserError, match=r"ray.storage is .*own/work/ray, in the folder that the job takes along"):
        check_reach(settings, collect(settings), elsewhere=False)
    (workspace / "vit.safetensors").write_text("x")
    settings = settings_of(workspace, ray__storage="/mnt/ray", backbone__weights="vit.safetensors")
    check_reach(settings, collect(settings), elsewhere=True)
    settings = settings_of(workspace, backbone__weights="../../../vit.safetensors")
    with pytest.raises(
        UserError, match=r"backbone.weights ../../../vit.safetensors is no file that the job takes along"
    ):
        check_reach(settings, collect(settings), elsewhere=True)


def test_a_study_in_a_file_of_this_machine_alone_is_refused(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MASM_STUDY_STORAGE", raising=False)
    settings = settings_of(workspace)
    check_study(settings, elsewhere=True)  # beside ray.storage, which check_reach looks at
    for url in ("sqlite:///studies.db", f"sqlite:///{workspace}/studies.db", "sqlite+pysqlite://"):
        monkeypatch.setenv("MASM_STUDY_STORAGE", url)
        with pytest.raises(UserError, match=r"the study storage is .*, in the folder that the job takes along"):
            check_study(settings, elsewhere=False)
    monkeypatch.setenv("MASM_STUDY_STORAGE", f"sqlite:///{tmp_path}/home/studies.db")
    check_study(settings, elsewhere=False)
    with pytest.raises(UserError, match=r"the study storage is .*/studies.db, in this machine's home folder"):
        check_study(settings, elsewhere=True)
    monkeypatch.setenv("MASM_STUDY_STORAGE", "postgresql+psycopg://studies:[@postgres:5432/studies")
    check_study(settings, elsewhere=True)


def test_what_a_stage_reads_must_be_in_the_remote(workspace: Path) -> None:
    check_pushed(workspace, "train")
    remote = workspace.parents[2] / "remote"
    for file in (file for file in remote.rglob("*") if file.is_file()):
        file.chmod(0o644)
        file.unlink()
    with pytest.raises(UserError, match=r"the DVC remote lacks \S+swap, \S+search, which train reads: run `dvc push`"):
        check_pushed(workspace, "train")
    lock = (workspace / "dvc.lock").read_text()
    (workspace / "dvc.lock").write_text(lock[: lock.index("  search:")])
    with pytest.raises(UserError, match=r"dvc.lock does not know search, which train reads: run `dvc repro search`"):
        check_pushed(workspace, "train")
    (workspace / "dvc.lock").unlink()
    with pytest.raises(UserError, match=r"there is no dvc.lock in .*own"):
        check_pushed(workspace, "train")
