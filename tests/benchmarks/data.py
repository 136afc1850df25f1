"""All figures of the data's side: the training loader, ingest of video, and the search for near-duplicates."""

from __future__ import annotations

from typing import Annotated

import typer

from tests.benchmarks import data_ingest, data_loader, data_neardup
from tests.benchmarks.output import show


def main(as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False) -> None:
    """Measure them one after the other."""
    figures = data_loader.figures() | data_ingest.figures() | data_neardup.figures()
    show("Face data", figures, as_json)


if __name__ == "__main__":
    typer.run(main)
