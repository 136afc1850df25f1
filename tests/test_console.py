"""Progress where nobody sees a bar move."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from masm import console
from masm.console import Progress


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, ["train: 1 of 4", "train: 3 of 4"]), (1e6, [])])
def test_a_log_has_lines_of_progress(monkeypatch: pytest.MonkeyPatch, seconds: float, lines: list[str]) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", seconds)
    log = StringIO()
    with Progress(Console(file=log, force_terminal=False, width=80)) as bar:
        task = bar.add_task("train", total=4)
        bar.advance(task)
        bar.update(task, completed=3)
        written = log.getvalue().splitlines()
    assert written == lines
    assert "75%" in log.getvalue()  # the bar's end, as before


def test_a_terminal_has_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    shown = StringIO()
    with Progress(Console(file=shown, force_terminal=True, width=80)) as bar:
        bar.advance(bar.add_task("train", total=4))
    assert "train: 1 of 4" not in shown.getvalue()
    assert "25%" in shown.getvalue()
