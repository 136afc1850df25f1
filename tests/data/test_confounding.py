from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from masm.data.confounding import COLUMNS, confounds, separability
from masm.data.table import read_table
from tests.data.tables import Row, make_settings, named_row, write_tables

LIMIT = 0.9
ELSEWHERE = {"source_clip": "web:1", "identity": "web:1"}


def signs(folder: Path, change: Callable[[Row], Row]) -> list[str]:
    settings = make_settings(folder)
    write_tables(settings, change)
    return confounds(read_table(settings.table("judge"), COLUMNS), LIMIT)


def only_fakes(**columns: object) -> Callable[[Row], Row]:
    return lambda found: dict(columns) if found["label"] else {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (only_fakes(**ELSEWHERE, sources=["web:1"]), "only 0 of its 4 videos show a person or recording"),
        (only_fakes(**ELSEWHERE, sources=[]), "of none of its 4 videos is it known what it was made from"),
        (only_fakes(compression="jpeg-70"), "its compression alone tells its videos from the reals"),
        (only_fakes(width=96), "its size alone"),
        (only_fakes(attributes=[("camera", "phone")]), "its attribute camera alone"),
    ],
)
def test_other_sources_of_the_fakes_are_found(tmp_path: Path, change: Callable[[Row], Row], says: str) -> None:
    (sign,) = signs(tmp_path, change)
    assert sign.startswith("swap: ")
    assert says in sign


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {},
        only_fakes(attributes=[("camera", "compact"), ("strength", "0.7")]),  # how it was made
        lambda found: {"compression": f"jpeg-{found['video_id'][-1]}"},  # each recording its own
        lambda found: {"sources": ["elsewhere", found["source_clip"]]} if found["label"] else {},  # a swap's donor
        only_fakes(source_clip="other", sources=["other"]),  # of the same people, as in Celeb-DF's list
    ],
)
def test_the_same_sources_are_not_accused(tmp_path: Path, change: Callable[[Row], Row]) -> None:
    assert signs(tmp_path, change) == []


@pytest.mark.parametrize(("shown", "accused"), [(0, True), (1, True), (2, False), (4, False)])
def test_a_matching_video_does_not_clear_the_others(tmp_path: Path, shown: int, accused: bool) -> None:
    def change(found: Row) -> Row:
        elsewhere = found["label"] and int(found["video_id"][-1]) >= shown
        return {**ELSEWHERE, "sources": ["web:1"]} if elsewhere else {}

    says = f"swap: only {shown} of its 4 videos show a person or recording that the reals show"
    assert signs(tmp_path, change) == ([says] if accused else [])


def test_one_method_from_elsewhere_is_enough(tmp_path: Path) -> None:
    """AUC is over all methods of a dataset: one that measures its source makes it do so."""
    rows = [named_row("judge", "test", f"r{number}", method, 0) for number in range(6) for method in ("real", "swap")]
    rows += [named_row("judge", "test", f"w{number}", "synthesis", 0) for number in range(6)]
    settings = make_settings(tmp_path)
    from masm.data.table import write_table

    write_table(settings.table("judge"), rows, [])
    found = confounds(read_table(settings.table("judge"), COLUMNS), LIMIT)
    assert [sign.split(":")[0] for sign in found] == ["synthesis"]


@pytest.mark.parametrize("seed", range(4))
def test_separability_is_that_of_leaving_one_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real = pd.Series(rng.choice(list("abcde"), 23, p=[0.4, 0.3, 0.2, 0.05, 0.05]))
    fake = pd.Series(rng.choice(list("abcde"), 11, p=[0.1, 0.1, 0.2, 0.3, 0.3]))

    def judged_right(own: list[str], other: list[str]) -> float:
        right = 0.0
        for index, value in enumerate(own):
            rest = own[:index] + own[index + 1 :]
            mine, theirs = rest.count(value) / len(rest), other.count(value) / len(other)
            right += 0.5 if abs(mine - theirs) < 1e-12 else float(mine > theirs)
        return right / len(own)

    expected = (judged_right(list(real), list(fake)) + judged_right(list(fake), list(real))) / 2
    assert separability(real, fake) == pytest.approx(expected, abs=1e-12)


def test_values_of_their_own_tell_nothing() -> None:
    assert separability(pd.Series(["a", "b", "c"]), pd.Series(["d", "e"])) == 0.5
    assert separability(pd.Series(["a"] * 5), pd.Series(["b"] * 5)) == 1.0
