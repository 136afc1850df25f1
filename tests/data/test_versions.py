"""DVC's part, against a remote in a folder: what is fetched is what was pushed at that revision, byte for byte."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from filelock import FileLock
from typer.testing import CliRunner

from masm.cli import app
from masm.data.table import write_table
from masm.data.versions import digests, fetch_missing, fetch_table, folder_md5, locked_tables, restore
from masm.errors import UserError
from masm.settings import Settings, load_settings
from tests.conftest import ROOT
from tests.data.tables import FORGED, make_settings, row

STAGE = "ingest@judge"
EACH = {"cmd": "true", "outs": ["data/${item.role}/${key}"]}
PIPELINE = {"stages": {"ingest": {"foreach": "${datasets}", "do": EACH}}}
Files = dict[str, bytes]


@dataclass(frozen=True)
class History:
    """A repository whose workspace lies below its root; its table at the tags "first" and "second"."""

    repository: Path
    workspace: Path
    tables: dict[str, Files]
    locked: dict[str, str]
    storage: Path


def git(folder: Path, *command: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def commit_version(settings: Settings, tag: str) -> tuple[Files, str]:
    """A table that only this version has: its bytes, and its MD5 in dvc.lock."""
    images = [f"{tag} {number}".encode() for number in range(3)]
    rows = [row("judge", "real", str(number), 0, image) for number, image in enumerate(images)]
    write_table(settings.table("judge"), rows, [])
    with Repo(str(settings.root)) as repo:
        repo.commit(str(settings.root / "dvc.yaml"), force=True)
        repo.push(targets=[str(settings.root / "dvc.yaml")])
    git(settings.root, "add", "-A")
    git(settings.root, "commit", "-m", tag)
    git(settings.root, "tag", tag)
    return files_of(settings.table("judge")), digests(settings)["judge"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("versions")
    repository = folder / "repository"
    settings = make_settings(repository / "runs" / "one", {"judge": {"role": "test", **FORGED}})
    (settings.root / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (repository / ".gitignore").write_text("/runs/*/data\n")
    git(repository, "init", "-q")
    git(repository, "commit", "--allow-empty", "-m", "empty")
    git(repository, "tag", "empty")
    with Repo.init(str(repository)) as repo, repo.config.edit() as config:
        config["core"]["remote"] = "storage"
        config["remote"]["storage"] = {"url": str(folder / "remote"), "verify": True}
    versions = {tag: commit_version(settings, tag) for tag in ("first", "second")}
    tables, locked = ({tag: version[part] for tag, version in versions.items()} for part in (0, 1))
    return History(repository, settings.root, tables, locked, folder / "remote")


@pytest.fixture
def history(made: History, tmp_path: Path) -> History:
    """A clone on another machine: neither table nor cache."""
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(made.repository), str(clone))
    git(clone, "fetch", "-q", "--tags")
    return History(clone, clone / "runs" / "one", made.tables, made.locked, made.storage)


def directory_md5(files: Files) -> str:
    """What DVC calls the MD5 of a folder: that of the JSON listing of its files, by name."""
    listing = [{"md5": hashlib.md5(data).hexdigest(), "relpath": name} for name, data in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


@pytest.mark.parametrize("tag", ["first", "second"])
def test_a_revision_gives_its_own_bytes_and_their_digest(history: History, tmp_path: Path, tag: str) -> None:
    digest = fetch_table(history.workspace, "judge", tag, tmp_path / "out")
    assert files_of(tmp_path / "out") == history.tables[tag]
    assert digest == history.locked[tag] == directory_md5(history.tables[tag])
    assert history.locked["first"] != history.locked["second"]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_command_prints_the_digest(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = str(history.workspace / "params.yaml")
    printed = CliRunner().invoke(app, ["data", "fetch", "judge", "--revision", "first", "--params", params])
    assert printed.output.split() == ["judge-first:", history.locked["first"]]
    printed = CliRunner().invoke(app, ["data", "fetch", "judge", "--out", "here", "--params", params])
    assert printed.output.split() == ["here:", history.locked["second"]]
    assert files_of(tmp_path / "judge-first") == history.tables["first"]


@pytest.mark.parametrize(
    ("dataset", "revision", "says"),
    [
        ("judge", "nowhere", "judge at revision nowhere cannot be fetched"),
        ("judge", "empty", "judge at revision empty cannot be fetched"),
        ("jury", "first", "no dataset 'jury' in dvc.lock at revision first: it has judge"),
    ],
)
def test_what_is_not_there_is_said(history: History, tmp_path: Path, dataset: str, revision: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fetch_table(history.workspace, dataset, revision, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_remote_without_the_table(history: History, tmp_path: Path) -> None:
    with Repo(str(history.repository)) as repo, repo.config.edit() as config:
        config["remote"]["storage"] = {"url": str(tmp_path / "empty")}
    with pytest.raises(UserError, match=r"cannot be fetched .* run `dvc push` where the data was made"):
        fetch_table(history.workspace, "judge", "first", tmp_path / "out")
    with pytest.raises(UserError, match="the DVC remote does not give them"):
        fetch_missing(history.workspace, [STAGE])


def with_a_flipped_bit(history: History, folder: Path, verify: bool) -> None:
    """Let the clone fetch from a copy of the remote, in which one bit of the table's outcomes is another one."""
    content = history.tables["first"]["outcomes.json"]
    digest = hashlib.md5(content).hexdigest()
    shutil.copytree(history.storage, folder)
    file = folder / "files" / "md5" / digest[:2] / digest[2:]
    file.chmod(0o644)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with Repo(str(history.repository)) as repo, repo.config.edit() as config:
        config["remote"]["storage"] = {"url": str(folder), "verify": verify}


@pytest.mark.parametrize("verify", [True, False])
def test_a_damaged_remote_is_found_out(history: History, tmp_path: Path, verify: bool) -> None:
    with_a_flipped_bit(history, tmp_path / "damaged", verify)
    with pytest.raises(UserError, match=r"cannot be fetched|came with MD5 .* not " + history.locked["first"]):
        fetch_table(history.workspace, "judge", "first", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_node_takes_nothing_damaged(history: History, tmp_path: Path) -> None:
    git(history.repository, "checkout", "-q", "first")
    with_a_flipped_bit(history, tmp_path / "damaged", verify=True)
    with pytest.raises(UserError, match="the DVC remote does not give them"):
        fetch_missing(history.workspace, [STAGE])


def test_the_remote_that_ships_is_verified() -> None:
    with Repo(str(ROOT)) as repo:
        assert repo.config["remote"]["storage"]["verify"]


@pytest.mark.parametrize("lock", ["", "schema: '2.0'\n", "<<<<<<< HEAD\nstages: {}\n=======\n", "stages: 3\n"])
def test_a_damaged_lock_is_said(history: History, tmp_path: Path, lock: str) -> None:
    (history.workspace / "dvc.lock").write_text(lock)
    git(history.repository, "commit", "-q", "-am", "damaged")
    settings = load_settings(history.workspace / "params.yaml")
    for what in (
        lambda: digests(settings),
        lambda: fetch_missing(history.workspace, [STAGE]),
        lambda: fetch_table(history.workspace, "judge", "HEAD", tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=r"the dvc\.lock .* is damaged"):
            what()


def test_nothing_is_overwritten(history: History, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        fetch_table(history.workspace, "judge", "first", tmp_path / "out")


def test_without_git_there_are_no_revisions(history: History, tmp_path: Path) -> None:
    shutil.rmtree(history.repository / ".git")
    with pytest.raises(UserError, match="lies in no git repository"):
        fetch_table(history.workspace, "judge", "first", tmp_path / "out")


def test_a_node_fetches_what_its_lock_names(history: History) -> None:
    git(history.repository, "checkout", "-q", "first")
    shutil.rmtree(history.repository / ".git")  # a job's copy has none
    table = load_settings(history.workspace / "params.yaml").table("judge")
    fetch_missing(history.workspace, [STAGE])
    assert files_of(table) == history.tables["first"]
    (table / "outcomes.json").unlink()
    fetch_missing(history.workspace, [STAGE])  # what is there is left as it is
    assert set(files_of(table)) == set(history.tables["first"]) - {"outcomes.json"}


def test_a_fetch_that_was_killed_is_done_again(history: History) -> None:
    table = load_settings(history.workspace / "params.yaml").table("judge")
    table.mkdir(parents=True)
    (table / "outcomes.json").write_text("half of it")
    marker = history.workspace / "data" / "work" / "fetching"
    marker.parent.mkdir()
    marker.write_text(STAGE)
    fetch_missing(history.workspace, [STAGE])
    assert files_of(table) == history.tables["second"]
    assert marker.read_text() == ""


def test_a_worker_waits_for_the_one_of_its_node_that_fetches(history: History) -> None:
    table = load_settings(history.workspace / "params.yaml").table("judge")
    table.mkdir(parents=True)
    first, *others = history.tables["second"]
    (table / first).write_bytes(history.tables["second"][first])  # as far as the other one is
    lock = history.workspace / "data" / "work" / "fetch.lock"
    lock.parent.mkdir()
    with ThreadPoolExecutor(1) as pool, FileLock(lock):
        waiting = pool.submit(lambda: (fetch_missing(history.workspace, [STAGE]), files_of(table)))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        for name in others:
            (table / name).write_bytes(history.tables["second"][name])
        lock.parent.joinpath("fetching").write_text("")
    assert waiting.result()[1] == history.tables["second"]
    assert not (history.repository / ".dvc" / "cache").exists()  # what is here was not fetched once more


def another_workspace(history: History, tmp_path: Path, tag: str) -> Path:
    """A repository with the workspace's settings and lock of a tag, and a DVC configuration without any remote."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    with Repo.init(str(other)):
        pass
    workspace = other / "runs" / "one"
    workspace.mkdir(parents=True)
    git(history.repository, "checkout", "-q", tag)
    for name in ("dvc.yaml", "dvc.lock", "params.yaml"):
        shutil.copyfile(history.workspace / name, workspace / name)
    git(history.repository, "checkout", "-q", "-")
    return workspace


@pytest.mark.parametrize("place", ["cache", "remote"])
def test_another_workspaces_cache_or_remote_gives_the_data(made: History, tmp_path: Path, place: str) -> None:
    """Of a former version, which neither lies in the workspaces nor is the lock of the one that has the cache."""
    like = tmp_path / "like"
    shutil.copytree(made.repository, like)
    if place == "remote":
        shutil.rmtree(like / ".dvc" / "cache")
    else:
        with Repo(str(like)) as repo, repo.config.edit() as config:
            config["remote"]["storage"]["url"] = str(tmp_path / "nothing")
    history = History(like, like / "runs" / "one", made.tables, made.locked, made.storage)
    workspace = another_workspace(history, tmp_path, "first")
    assert restore(workspace, history.workspace, [STAGE]) == []
    assert files_of(workspace / "data" / "test" / "judge") == made.tables["first"]
    (path, md5), *others = locked_tables(workspace).values()
    assert (path, md5, others) == ("data/test/judge", made.locked["first"], [])
    assert folder_md5(workspace / path) == md5


def test_what_is_neither_in_cache_nor_remote_is_named(made: History, tmp_path: Path) -> None:
    like = tmp_path / "like"
    shutil.copytree(made.repository, like)
    shutil.rmtree(like / ".dvc" / "cache")
    with Repo(str(like)) as repo, repo.config.edit() as config:
        config["remote"]["storage"]["url"] = str(tmp_path / "nothing")
    history = History(like, like / "runs" / "one", made.tables, made.locked, made.storage)
    workspace = another_workspace(history, tmp_path, "first")
    assert restore(workspace, history.workspace, [STAGE]) == [STAGE]
    shutil.rmtree(workspace.parents[1] / ".dvc")
    with pytest.raises(UserError, match="DVC cannot open"):
        restore(workspace, history.workspace, [STAGE])
