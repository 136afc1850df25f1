"""Commands on models: embed, export, score, monitor, serve, lineage, reproduce."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from masm.cli.shared import ParamsOption
from masm.errors import CheckFailed, UserError
from masm.settings import Settings, api_key, load_settings

if TYPE_CHECKING:
    from masm.drift import Comparison, Reference
    from masm.monitoring import Batch
    from masm.reproduction import Difference
    from masm.serving.scorer import Scorer

app = typer.Typer()


@app.command()
def embed(
    out: Annotated[Path, typer.Option(help="The Parquet file to write; one of embeddings is replaced.")],
    datasets: Annotated[
        list[str] | None,
        typer.Argument(help="Datasets of params.yaml; without, those of role test.", metavar="DATASET"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A folder, or a version: its number, alias or models:/ address.")
    ] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Write the embeddings of every frame of some datasets by a detector, models/detector where none is named."""
    import torch
    from rich.progress import Progress

    from masm.detector import Detector
    from masm.embeddings import check_embeddings_file, every_frame, origin_of, write_embeddings
    from masm.serving.scorer import find_parts

    settings = load_settings(params)
    if out.exists():
        check_embeddings_file(out)
    named = datasets or settings.with_role("test")
    frames = every_frame(settings, named)
    with _opened(settings, model or str(settings.root / "models" / "detector")) as (name, opened):
        folder, _ = find_parts(opened)
        detector = Detector.load(folder, merged=True).to("cuda" if torch.cuda.is_available() else "cpu")
        origin = origin_of(settings, named, name if model else "models/detector", folder)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embed", total=sum(map(len, frames.values())))
        write_embeddings(out, detector, settings, frames, origin, lambda done: bar.advance(task, done))
    Console().print(f"{out}: embeddings of {sum(map(len, frames.values()))} frames", markup=False, highlight=False)


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION; without, the champion.")
    ] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Answer over HTTP, with a page to try it on, by the version that an alias names at the time; Ctrl-C stops."""
    from masm import registry

    try:
        from masm.serving.app import run
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'masm[serving]'.") from None
    settings = load_settings(params)
    console = Console()
    uri = model or f"models:/{settings.mlflow.model}@champion"
    with registry.answering(settings.mlflow):
        run(settings, uri, api_key(), lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A folder, or a version: its number, alias or models:/ address.")],
    out: Annotated[Path, typer.Option(help="The file to write: *.onnx or *.pt2.")],
    form: Annotated[str, typer.Option("--format", help="onnx, or torch for torch.export's .pt2.")] = "onnx",
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Write a detector as one file for other programs, once that gives the same logits.

    It takes images (B, 3, S, S), RGB in [0, 1], any B, and gives logits (B,), positive for fake.
    """
    from masm.detector import Detector
    from masm.exporting import FORMATS, describe
    from masm.exporting import export as write
    from masm.serving.scorer import find_parts

    if form not in FORMATS:
        raise UserError(f"there is no format {form!r}: choose {' or '.join(FORMATS)}.")
    settings = load_settings(params)
    with _opened(settings, model) as (_, folder):
        detector = Detector.load(find_parts(folder)[0], merged=True)
    difference = write(detector, out, form)
    size = describe(detector)["input"]["shape"][-1]
    Console().print(f"{out}: {size} px, logits as the detector's to {difference:.1e}", markup=False, highlight=False)


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help="A version: its number, alias or models:/ address.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Show what a registered model came from: data, code, settings, environment and run."""
    from masm import registry
    from masm.provenance import describe, trace

    settings = load_settings(params)
    client = registry.connect(settings.mlflow)
    with registry.answering(settings.mlflow):
        chain = trace(client, registry.resolve(client, settings.mlflow.model, model))
    if as_json:
        typer.echo(json.dumps(chain, indent=2))
        return
    for what, was in describe(chain):
        typer.echo(f"{what:<16}{was}")


@app.command()
def reproduce(
    model: Annotated[str, typer.Argument(help="A version: its number, alias or models:/ address.")],
    out: Annotated[Path | None, typer.Option(help="A folder to do it in, which stays; else a temporary one.")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="By how much a metric may differ.")] = 1e-6,
    keep_search: Annotated[bool, typer.Option("--keep-search", help="Take the search's outcome from DVC.")] = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Make a registered model again from its code, settings and data, and compare its metrics.

    The registry is not touched. Exit code 1 where a metric differs.
    """
    from masm import registry
    from masm.reproduction import differences, in_folder, read_record
    from masm.reproduction import reproduce as make_again

    settings = load_settings(params)
    client = registry.connect(settings.mlflow)
    with registry.answering(settings.mlflow):
        recorded = read_record(registry.resolve(client, settings.mlflow.model, model))
    with in_folder(out) as folder:
        found = make_again(settings, recorded, folder, keep_search)
    if differing := differences(recorded.metrics, found, tolerance):
        _print_differences(differing, recorded.environment)
        count = f"{len(differing)} of {len(recorded.metrics)} metrics"
        raise CheckFailed(f"{count} of {model} differ by more than {tolerance:g} when it is made again.")
    typer.echo(f"{model}: all {len(found)} metrics agree to {tolerance:g}")


def _print_differences(differing: list[Difference], recorded: tuple[str, ...]) -> None:
    """The metrics that differ, and what of the environment does."""
    from masm.lineage import environment
    from masm.reproduction import changed_packages

    table = Table("metric", "recorded", "made again")
    for row in differing:
        sides = (row.recorded, row.reproduced)
        table.add_row(row.name, *("absent" if side is None else f"{side:.9g}" for side in sides))
    Console().print(table)
    if changed := changed_packages(recorded, environment()):
        Console().print(f"The environment differs: {', '.join(changed)}", markup=False, highlight=False)


@contextmanager
def _opened(settings: Settings, said: str) -> Iterator[tuple[str, Path]]:
    """What a model is called and where it lies: a folder, or a checked copy of the version that is said.

    A folder is written with a slash, or is there; anything else is as `registry.resolve` takes it.
    """
    if not said.startswith("models:") and ("/" in said or Path(said).is_dir()):
        yield said, Path(said)
        return
    from masm import registry

    client = registry.connect(settings.mlflow)
    with TemporaryDirectory() as folder:
        with registry.answering(settings.mlflow):
            version = registry.resolve(client, settings.mlflow.model, said)
            copy = registry.download(client, version, Path(folder))
        yield f"models:/{version.name}/{version.version}", copy


@app.command()
def score(
    paths: Annotated[list[Path], typer.Argument(help="Images, videos, and folders of them.", metavar="PATH...")],
    model: Annotated[
        str | None,
        typer.Option(help="A folder, or a version: its number, alias or models:/ address; else the champion."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="FILE.parquet or FILE.csv; without, a table is shown.")] = None,
    frames: Annotated[bool, typer.Option("--frames", help="A row for each frame of the videos, too.")] = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Score images and videos: one row for each file, with the reason where it cannot be scored."""
    from rich.progress import Progress

    from masm.serving.files import check_out, find_media, score_rows, table_of, write_rows
    from masm.serving.many import Result

    settings = load_settings(params)
    if out is not None:
        check_out(out)
    files = find_media(paths)
    outcomes: Counter[str] = Counter()
    with (
        _opened_scorer(settings, model) as (name, scorer),
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("score", total=len(files))

        def count(result: Result) -> None:
            outcomes[result.outcome] += 1
            bar.advance(task)

        rows = score_rows(scorer, name, files, frames, count)
        table = None
        if out is None:
            table = table_of(rows)
        else:
            write_rows(out, rows)
    if table is not None:
        Console().print(table)
    where = "" if out is None else f"{out}: "
    text = f"{where}{outcomes['ok']} of {len(files)} files have a score"
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def monitor(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Images, videos, folders; or Parquet of `masm score --frames` or `masm embed`."),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A folder, or a version: its number, alias or models:/ address; else the champion."),
    ] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Say whether scores and embeddings of a batch are as those of the model's validation; exit code 1 if not."""
    from rich.progress import Progress

    from masm.drift import compare, read_reference
    from masm.monitoring import observe

    settings = load_settings(params)
    with _opened_scorer(settings, model) as (_, scorer), Progress(console=Console(stderr=True), transient=True) as bar:
        reference = read_reference(scorer.folder)
        task = bar.add_task("monitor", total=None)
        batch = observe(scorer, paths, lambda done, total: bar.update(task, completed=done, total=total))
    rows = compare(reference, batch.sample, settings.monitor.psi, settings.monitor.significance)
    _print_monitored(reference, batch, rows)
    if drifted := [f"{row.statistic} of {row.what}" for row in rows if row.drifted]:
        raise CheckFailed(f"the batch has drifted from what the model was validated on: {', '.join(drifted)}.")


def _print_monitored(reference: Reference, batch: Batch, rows: list[Comparison]) -> None:
    """What the batch was, and its distances from the reference."""
    from masm.drift import frames_of

    table = Table("distribution", "statistic", "value", "limit", "")
    for row in rows:
        mark = "drifted" if row.drifted else ""
        table.add_row(row.what, row.statistic, f"{row.value:.3f}", f"{row.limit:.3f}", mark)
    Console().print(table)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in batch.outcomes.most_common())
    counts = f"{frames_of(batch.sample)}, reference: {frames_of(reference)}; files or videos: {outcomes}"
    Console().print(counts, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _opened_scorer(settings: Settings, said: str | None) -> Iterator[tuple[str, Scorer]]:
    """What a model is called, the champion where none is said, and its scorer; as `_opened`."""
    from masm.data.profile import detector_weights
    from masm.serving.scorer import Scorer

    with _opened(settings, said or "champion") as (name, folder):
        yield name, Scorer(folder, detector_weights(settings), max_pixels=settings.serving.max_pixels)
