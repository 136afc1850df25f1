"""The journal, cut at any byte."""

from __future__ import annotations

import json
from pathlib import Path

from masm.tracking.journal import Journal, journal_path, read_entries, unsent


def entries(path: Path, start: int = 0) -> list[object]:
    return [entry for entry, _ in read_entries(path, start)]


def write(path: Path, *steps: int) -> None:
    journal = Journal(path)
    for step in steps:
        journal.write(log="k", metrics={"loss": 0.5}, step=step)
    journal.close()


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    write(whole, 1, 2, 3)
    text = whole.read_bytes()
    ends = [index + 1 for index, byte in enumerate(text) if byte == ord("\n")]
    for cut in range(len(text) + 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(text[:cut])
        before = sum(end <= cut for end in ends)
        assert [entry["step"] for entry in entries(path)] == [1, 2, 3][:before]
        write(path, 9)
        kept = [entry["step"] for entry in entries(path) if entry is not None]
        # A line that lacks its end alone is whole once the next writer has ended it.
        assert kept in ([*[1, 2, 3][:before], 9], [*[1, 2, 3][: before + 1], 9] if cut + 1 in ends else None)


def test_reading_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 1, 2)
    *_, (_, end) = read_entries(path, 0)
    assert end == path.stat().st_size
    write(path, 3)
    assert [entry["step"] for entry in entries(path, end)] == [3]


def test_a_line_of_something_else_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'\xff\xfe\n17\n{"log": \n' + json.dumps({"log": "k"}).encode() + b"\n")
    assert entries(path) == [None, None, None, {"log": "k"}]


def test_unsent_journals_of_a_workspace_are_found(tmp_path: Path) -> None:
    assert unsent(tmp_path) == []
    for name in ("train-b", "search-a"):
        write(journal_path(tmp_path, name), 1)
    assert [path.stem for path in unsent(tmp_path)] == ["search-a", "train-b"]
