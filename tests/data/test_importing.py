from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from masm.cli import app
from masm.data.exporting import export_manifest
from masm.data.importing import Imported, Request, import_dataset
from masm.data.index import read_index
from masm.errors import UserError
from masm.settings import ImportedDataset, load_settings
from tests.conftest import ROOT
from tests.data.importers.trees import STRADDLING, ffpp_manifest, ffpp_tree, store_manifest, touch


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return folder


def bring_in(workspace: Path, layout: str, path: Path, **options: Any) -> Imported:
    settings = load_settings(workspace / "params.yaml")
    request = Request(layout, path, options.pop("name", "mine"), options.pop("role", "test"), **options)
    return import_dataset(settings, request, lambda done, total: None)


def test_the_entry_is_added_and_the_rest_of_params_stays(workspace: Path, tmp_path: Path) -> None:
    before = (workspace / "params.yaml").read_text()
    found = bring_in(workspace, "ffpp", ffpp_tree(tmp_path / "ff"), role="train")
    after = (workspace / "params.yaml").read_text()
    entry = f"role: train, index: indices/mine.parquet, digest: {found.entry.digest}, splits: [train, val]"
    *_, last = [line for line in before.splitlines() if line.startswith("  second-camera:")]
    assert after.splitlines()[after.splitlines().index(last) + 1] == f"  mine: {{{entry}}}"
    assert after.replace(f"  mine: {{{entry}}}\n", "").split() == before.split()  # comments, too; but for line breaks
    settings = load_settings(workspace / "params.yaml")
    assert settings.datasets["mine"] == found.entry
    assert isinstance(settings.datasets["mine"], ImportedDataset)
    assert found.videos["train", "DF"] == 16
    assert (found.files, found.missing) == (96, 0)
    assert found.straddling == STRADDLING


def test_the_licence_stands_apart_so_that_no_ingest_is_repeated_for_it(workspace: Path, tmp_path: Path) -> None:
    tree = ffpp_tree(tmp_path / "ff")
    entry = bring_in(workspace, "ffpp", tree).entry
    assert load_settings(workspace / "params.yaml").licence("mine") == "not stated"
    assert bring_in(workspace, "ffpp", tree, licence="FF++ terms: research").entry == entry
    settings = load_settings(workspace / "params.yaml")
    assert settings.licences == {"mine": "FF++ terms: research"}
    assert settings.licence("mine") == "FF++ terms: research"
    bring_in(workspace, "ffpp", tree)
    assert load_settings(workspace / "params.yaml").licence("mine") == "FF++ terms: research"


def test_import_again_replaces_the_entry_in_place(workspace: Path, tmp_path: Path) -> None:
    tree = ffpp_tree(tmp_path / "ff")
    first = bring_in(workspace, "ffpp", tree)
    assert bring_in(workspace, "ffpp", tree).entry == first.entry
    bring_in(workspace, "ffpp", tree, name="later")
    lines = (workspace / "params.yaml").read_text().splitlines()
    touch(tree / "original_sequences/youtube/c23/videos/000.mp4", "another")
    second = bring_in(workspace, "ffpp", tree)
    assert second.entry.digest != first.entry.digest
    changed = (workspace / "params.yaml").read_text().splitlines()
    assert [line for line in changed if line not in lines] == [
        lines[changed.index("checks:") - 3].replace(first.entry.digest, second.entry.digest)
    ]
    assert len(changed) == len(lines)
    assert load_settings(workspace / "params.yaml").datasets["mine"] == second.entry


def test_a_digest_of_digits_stays_a_word(workspace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for digest in ("0123456701234567", "12e3456789012345", "1234567890123456"):
        monkeypatch.setattr("masm.data.importing.write_index", lambda path, clips, root, found=digest: found)
        bring_in(workspace, "ffpp", ffpp_tree(tmp_path / "ff"))
        assert yaml.safe_load((workspace / "params.yaml").read_text())["datasets"]["mine"]["digest"] == digest


def test_a_benchmark_manifest_goes_through_unchanged(workspace: Path, tmp_path: Path) -> None:
    tree = ffpp_manifest()
    bring_in(workspace, "deepfakebench", store_manifest(tmp_path / "bench", tree), root=tmp_path / "bench")
    settings = load_settings(workspace / "params.yaml")
    exported = export_manifest(settings, "mine", tmp_path / "out" / "mine.json")
    assert json.loads(exported.manifest.read_text()) == tree
    assert exported.root == tmp_path / "bench"


def test_missing_frames_are_kept_in_the_index_and_counted(workspace: Path, tmp_path: Path) -> None:
    manifest = store_manifest(tmp_path / "bench", ffpp_manifest())
    (tmp_path / "bench/FaceForensics++/original_sequences/youtube/c23/frames/022/001.png").unlink()
    found = bring_in(workspace, "deepfakebench", manifest, root=tmp_path / "bench")
    assert (found.files, found.missing) == (192, 1)
    clip = next(one for one in read_index(found.index) if one.clip.video_id == "022")
    assert [stamp is None for stamp in clip.stamps] == [False, True, False]


def test_a_strict_split_says_what_it_leaves_out(workspace: Path, tmp_path: Path) -> None:
    found = bring_in(workspace, "ffpp", ffpp_tree(tmp_path / "ff"), role="train", strict=True)
    assert found.videos["excluded", "real"] == 14
    assert found.videos["train", "real"] == 2


def test_a_train_set_without_val_gets_one_by_recording(workspace: Path, tmp_path: Path) -> None:
    for number in range(20):
        touch(tmp_path / "in" / "real" / f"{number}.mp4")
        touch(tmp_path / "in" / "fake" / f"{number}.mp4")
    rows = [f"real/{n}.mp4,real,\nfake/{n}.mp4,fake,real/{n}.mp4" for n in range(20)]
    labels = touch(tmp_path / "labels.csv", "path,label,source\n" + "\n".join(rows))
    found = bring_in(workspace, "videos", tmp_path / "in", role="train", labels=labels)
    assert found.videos == {("train", "real"): 17, ("train", "fake"): 17, ("val", "real"): 3, ("val", "fake"): 3}
    assert found.notes["train videos held out as val (faces.validation_share)"] == 6
    by_recording: dict[str, set[str]] = {}
    for one in read_index(found.index):
        by_recording.setdefault(one.clip.source_clip, set()).add(one.clip.split)
    assert all(len(splits) == 1 for splits in by_recording.values())


def two_classes(folder: Path) -> Path:
    touch(folder / "test" / "real" / "a.png")
    touch(folder / "test" / "fake" / "b.png")
    return folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "swap"}, "datasets.swap is one whose forgeries are made here"),
        ({"name": "a.b"}, "'a.b' cannot name a dataset"),
        ({"layout": "imagefolders"}, "there is no layout 'imagefolders'"),
        ({"layout": "folder"}, "run `masm demo --faces SRC`"),
        ({"path": "nowhere"}, "there is nothing at"),
        ({"role": "validate"}, "has no videos of val, it has test"),
        ({"role": "train", "splits": ("train", "test")}, "a train dataset cannot take 'test'"),
        ({"role": "train", "splits": ("val",)}, "a train dataset takes train, not val alone"),
        ({"splits": ("tests",)}, "a test dataset cannot take 'tests'"),
        ({"remove": "test/fake/b.png"}, "has only reals in test"),
        ({"repeat": "test/fake/b.jpg"}, "1 videos stand there twice, such as b (test, fake)"),
        ({"root": "elsewhere"}, "does not lie below"),
    ],
)
def test_what_cannot_be_imported_is_said_and_nothing_is_written(
    workspace: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    folder = two_classes(tmp_path / "in")
    if "remove" in options:
        (folder / options.pop("remove")).unlink()
    if "repeat" in options:
        touch(folder / options.pop("repeat"))
    if "root" in options:
        options["root"] = tmp_path / options["root"]
    layout, path = options.pop("layout", "imagefolder"), tmp_path / options.pop("path", "in")
    before = (workspace / "params.yaml").read_text()
    with pytest.raises(UserError) as caught:
        bring_in(workspace, layout, path, **options)
    assert says in str(caught.value)
    assert (workspace / "params.yaml").read_text() == before
    assert not (workspace / "indices").exists()


def test_a_train_set_of_which_nothing_can_be_held_out_is_said(workspace: Path, tmp_path: Path) -> None:
    for name in ("train/real/a.png", "train/fake/b.png"):
        touch(tmp_path / "in" / name)
    with pytest.raises(UserError, match=r"none of one class can be held out .* faces\.validation_share \(0\.15\)"):
        bring_in(workspace, "imagefolder", tmp_path / "in", role="train")


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_file_of_two_videos_is_refused(workspace: Path, tmp_path: Path, split: str) -> None:
    """Else one picture would be real and fake."""
    listed = {"set_Real": ("test", ["a/0.png", "a/1.png"]), "set_Fake": (split, ["a/1.png", "b/0.png"])}
    tree: dict[str, object] = {
        "set": {key: {where: {"v": {"label": key, "frames": files}}} for key, (where, files) in listed.items()}
    }
    manifest = store_manifest(tmp_path / "bench", tree)
    with pytest.raises(UserError, match=r"1 files belong to two videos, such as .*/a/1\.png to real/v and set/v"):
        bring_in(workspace, "deepfakebench", manifest, root=tmp_path / "bench")


def test_settings_of_another_name_are_refused(workspace: Path, tmp_path: Path) -> None:
    """The stages read params.yaml alone."""
    other = workspace / "other.yaml"
    other.write_text((workspace / "params.yaml").read_text())
    command = ["data", "import", str(two_classes(tmp_path / "in")), "--layout", "imagefolder", "--name", "mine"]
    result = CliRunner().invoke(app, [*command, "--params", str(other)])
    assert isinstance(result.exception, UserError)
    assert "the stages read params.yaml" in str(result.exception)
    assert {path.name for path in workspace.iterdir()} == {"other.yaml", "params.yaml"}


def test_a_wrong_root_is_said(workspace: Path, tmp_path: Path) -> None:
    manifest = store_manifest(tmp_path / "bench", ffpp_manifest())
    with pytest.raises(UserError, match=r"none of the 192 files of .* is there, such as .*: give --root"):
        bring_in(workspace, "deepfakebench", manifest)


def test_a_video_in_two_splits_of_one_dataset_is_refused(workspace: Path, tmp_path: Path) -> None:
    """DeepfakeBench lists every video of DFD in all three splits."""
    tree: dict[str, object] = {
        "DFD": {
            key: {split: {"v": {"label": key, "frames": [f"{key}/0.png"]}} for split in ("train", "val", "test")}
            for key in ("r_Real", "f_Fake")
        }
    }
    manifest = store_manifest(tmp_path / "bench", tree)
    with pytest.raises(UserError, match="has 2 videos, such as v, in more than one of train, val"):
        bring_in(workspace, "deepfakebench", manifest, root=tmp_path / "bench", role="train")
    found = bring_in(workspace, "deepfakebench", manifest, root=tmp_path / "bench")
    assert found.entry.splits == ("test",)


def test_a_train_set_can_hold_out_its_own_val(workspace: Path, tmp_path: Path) -> None:
    """Celeb-DF in DeepfakeBench: val is test."""
    tree = {"set": {key: {"train": {}, "val": {}, "test": {}} for key in ("set_Real", "set_Fake")}}
    for key, splits in tree["set"].items():
        for number in range(20):
            video = {"label": key, "frames": [f"{key}/{number}/0.png"]}
            splits["train"][f"{number}"] = video  # type: ignore[index]
            if number < 3:
                splits["val"][f"{number}"] = splits["test"][f"{number}"] = video  # type: ignore[index]
    manifest = store_manifest(tmp_path / "bench", tree)
    found = bring_in(workspace, "deepfakebench", manifest, root=tmp_path / "bench", role="train", splits=("train",))
    assert found.entry.splits == ("train", "val")
    counts = {split: sum(n for (name, _), n in found.videos.items() if name == split) for split in ("train", "val")}
    assert counts == {"train": 34, "val": 6}
    assert found.notes["videos of the layout's val excluded (--splits train)"] == 6
