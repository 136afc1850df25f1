"""The file of Scores, and the parts that it is put together from: work in progress that outlives a killed stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from masm.data.parts import Part
from masm.errors import UserError
from masm.scoring import score_rows, score_schema
from masm.settings import Settings

ROW_GROUP = 16_384
"""Rows that are written at once: what a file says of each of its row groups is in memory until its end."""


@dataclass(frozen=True)
class Work:
    """A folder with a file for each part that a model has scored.

    Attributes:
        folder: named by all that the scores depend on, so that a file in it is never another's.
    """

    folder: Path

    def path(self, model: str, part: Part) -> Path:
        """The part's file."""
        return self.folder / model / f"{part.name}.parquet"

    def missing(self, model: str, parts: Sequence[Part]) -> list[Part]:
        """The parts that have not been scored."""
        return [part for part in parts if not self.path(model, part).exists()]

    def keep(self, model: str, part: Part, scores: pa.Table) -> None:
        """Write a part as `masm.scoring.score_parts` gives it; the file is there when it is whole."""
        path = self.path(model, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, scores.schema, [scores])

    def read(self, model: str, part: Part) -> pa.Table:
        """A part that is there.

        Raises:
            UserError: its file is damaged.
        """
        path = self.path(model, part)
        try:
            return pq.read_table(path, use_threads=False, pre_buffer=False)  # by one thread: it spares memory
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): remove it, and run the stage again.") from None


def write_scores(path: Path, settings: Settings, plans: Mapping[str, Sequence[Part]], work: Work) -> None:
    """Put the scores of some models together, a part at a time; the file is replaced when the new one is whole.

    Args:
        path: a Parquet file with the columns of `masm.scoring.score_schema` and `model`.
        settings: where the face tables are, and the slices.
        plans: the parts of each model, as `masm.data.parts.plan` gives them.
        work: where they all are.

    Raises:
        UserError: the scores are not those of the frames that the face tables hold.
    """
    rows = (
        table.append_column("model", pa.repeat(model, len(table)))
        for model, parts in plans.items()
        for table in score_rows(settings, parts, partial(work.read, model))
    )
    _write_whole(path, score_schema(settings).append(pa.field("model", pa.string())), rows)


def read_scores(path: Path) -> dict[str, pd.DataFrame]:
    """The Scores of each model, in a file of `write_scores`."""
    scores = pd.read_parquet(path)
    return {str(model): rows.drop(columns="model") for model, rows in scores.groupby("model", sort=False)}


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The tables put together to ROW_GROUP rows or a few more."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= ROW_GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _write_whole(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables one after the other; the file gets its name when all are in it."""
    unfinished = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
            for table in _grouped(tables):
                writer.write_table(table)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
