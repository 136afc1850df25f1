from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masm.data.checks import ALL, methods_of, run_checks
from masm.data.findings import Finding, confounded_datasets, write_findings
from masm.data.index import Clip, IndexedClip, write_index
from masm.errors import CheckFailed, UserError
from masm.settings import Settings
from pipelines import validate
from tests.data.tables import DATASETS, FORGED, Row, make_settings, write_tables

TWO = {name: DATASETS[name] for name in ("learn", "judge")}


def check(settings: Settings, folder: Path) -> list[Finding]:
    return run_checks(settings, folder / "docs", lambda name: None)


def test_sound_tables_pass_and_have_pages(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    write_tables(settings)
    said: list[str] = []
    assert run_checks(settings, tmp_path / "docs", said.append) == []
    index = (tmp_path / "docs" / "index.html").read_text()
    results = list((tmp_path / "docs" / "validations").rglob("*.html"))
    assert len(results) == len(settings.datasets) + 1
    assert {name for name in (*settings.datasets, ALL) if name in index} == {*settings.datasets, ALL}
    assert set(settings.datasets) <= set(said)


def in_first(**columns: object) -> Callable[[Row], Row | None]:
    return lambda found: dict(columns) if found["sample_id"] == "judge/real/judge-test-0/0" else {}


def everywhere(**columns: object) -> Callable[[Row], Row | None]:
    return lambda found: dict(columns) if found["dataset"] == "judge" else {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (everywhere(label=1, method="swap"), "expect_column_distinct_values_to_contain_set"),
        (in_first(label=2), "expect_column_values_to_be_in_set"),
        (in_first(split="val"), "expect_column_values_to_be_in_set"),
        (in_first(label=1, method="unheard-of"), "expect_column_pair_values_to_be_in_set"),
        (in_first(label=1), "expect_column_pair_values_to_be_in_set"),
        (in_first(identity=None), "expect_column_values_to_not_be_null"),
        (in_first(sources=None), "expect_column_values_to_not_be_null"),
        (everywhere(sample_id="twice"), "expect_column_values_to_be_unique"),
        (in_first(width=65), "expect_column_values_to_be_between"),
        (in_first(phash="0x12"), "expect_column_values_to_match_regex"),
        (in_first(sha256=None), "expect_column_values_to_not_be_null"),
        (in_first(profile="other"), "expect_column_unique_value_count_to_be_between"),
        (lambda found: None if found["sample_id"] == "judge/swap/judge-test-1/1" else {}, "frames per video"),
        (lambda found: None if found["sample_id"] > "judge/swap/judge-test-0/1" else {}, "videos per class"),
    ],
)
def test_a_damaged_table_is_found(tmp_path: Path, change: Callable[[Row], Row | None], says: str) -> None:
    settings = make_settings(tmp_path, {"judge": DATASETS["judge"]})
    write_tables(settings, change)
    found = check(settings, tmp_path)
    assert any(says in finding.text for finding in found if (finding.check, finding.dataset) == ("table", "judge"))


@pytest.fixture
def leaking(tmp_path: Path) -> Callable[[str], Settings]:
    """A person in train and test, and a test dataset whose fakes are of other recordings."""

    def make(severity: str) -> Settings:
        settings = make_settings(tmp_path, TWO, checks__severity__person=severity)

        def change(found: Row) -> Row:
            if found["dataset"] == "judge" and found["label"]:
                return {"source_clip": "web", "sources": ["web"], "identity": "web"}
            return {"identity": "somebody"} if found["frame_index"] == 0 and found["video_id"].endswith("0") else {}

        write_tables(settings, change)
        (settings.root / "reports").mkdir(exist_ok=True)
        return settings

    return make


def report(settings: Settings) -> dict[str, Any]:
    return json.loads((settings.root / "reports" / "checks.json").read_text())


def test_an_error_fails_the_stage_and_leaves_its_report(leaking: Callable[[str], Settings]) -> None:
    settings = leaking("error")
    with pytest.raises(CheckFailed, match=r"(?s)1 expectations were not met.*somebody is in test/test \(judge\)"):
        validate.main(settings)
    found = report(settings)
    assert (found["errors"], found["warnings"]) == (1, 1)
    (page,) = (settings.root / "reports" / "data_docs" / "validations").rglob(f"{ALL}*/**/*.html")
    assert "somebody is in test/test" in page.read_text()


def test_warnings_are_shown_and_kept(leaking: Callable[[str], Settings], capsys: pytest.CaptureFixture[str]) -> None:
    settings = leaking("warning")
    validate.main(settings)
    found = report(settings)
    assert (found["errors"], found["warnings"]) == (0, 2)
    assert {(line["check"], line["severity"], line["dataset"]) for line in found["findings"]} == {
        ("person", "warning", ALL),
        ("confounding", "warning", "judge"),
    }
    shown = capsys.readouterr().err
    assert "somebody is in" in shown
    assert "2 warnings" in shown
    signs = confounded_datasets(settings.root / "reports" / "checks.json")
    assert signs == {"judge": "swap: only 0 of its 4 videos show a person or recording that the reals show"}


def test_many_findings_of_a_check_are_counted(tmp_path: Path) -> None:
    found = [Finding("person", "error", ALL, f"person {number}") for number in range(validate.LISTED + 3)]
    lines = validate._listed([*found, Finding("video", "error", ALL, "a video")]).splitlines()
    assert len(lines) == validate.LISTED + 2
    assert lines[-2:] == ["  and 3 more of person in reports/checks.json", f"  {ALL}: a video"]


def test_methods_of_an_imported_dataset_are_those_of_its_index(tmp_path: Path) -> None:
    file = tmp_path / "video.mp4"
    file.write_bytes(b"x")

    def clip(method: str) -> IndexedClip:
        label = int(method != "real")
        return IndexedClip(
            Clip(f"{method}-1", "test", label, method, "face swap", None, "FF++:000", (), "c23", (file,)), (None,)
        )

    digest = write_index(tmp_path / "index.parquet", [clip(name) for name in ("real", "NT", "DF")], tmp_path)
    entry = {"role": "test", "index": "index.parquet", "digest": digest, "splits": ["test"]}
    settings = make_settings(tmp_path, {"judge": entry, "made": {"role": "test", **FORGED}})
    assert methods_of(settings, "judge") == ["DF", "NT"]
    assert methods_of(settings, "made") == ["swap"]
    (tmp_path / "index.parquet").unlink()
    with pytest.raises(UserError, match="there is no index at"):
        methods_of(settings, "judge")


def test_the_first_of_many_signs_stands_for_all(tmp_path: Path) -> None:
    """The verdict quotes it in a tag, which must stay short."""
    signs = [Finding("confounding", "warning", "judge", f"sign {number}") for number in range(40)]
    write_findings(tmp_path / "checks.json", ["judge"], [*signs, Finding("person", "error", ALL, "somebody")])
    assert confounded_datasets(tmp_path / "checks.json") == {"judge": "sign 0; 39 more"}
