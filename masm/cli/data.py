"""`masm data`: datasets come in, and are handed on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from masm.cli.shared import ParamsOption, activate
from masm.errors import UserError
from masm.settings import Role, load_settings

if TYPE_CHECKING:
    from masm.data.importing import Imported

app = typer.Typer(help="Datasets: bring them in, hand them on.", no_args_is_help=True)

FOLDER_SUMMARY = (
    "photographs of real people alone; forgeries are made from them here: run `masm demo --faces SRC`, or set "
    "faces.source: photographs"
)


@app.command("import")
def data_import(
    path: Annotated[Path, typer.Argument(help="The layout's folder or file.", metavar="SRC")],
    layout: Annotated[str, typer.Option(help="See `masm data list-layouts`.")],
    name: Annotated[str, typer.Option(help="What the dataset is called here.")],
    role: Annotated[Role, typer.Option(help="What the dataset is for.")] = "test",
    root: Annotated[Path | None, typer.Option(help="Where the paths in a manifest begin.")] = None,
    splits: Annotated[str | None, typer.Option(help="Splits of the layout that are taken, as in train,val.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Leave out what straddles the layout's splits.")] = False,
    compression: Annotated[str | None, typer.Option(help="Of FaceForensics++: raw, c23 or c40.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV file with the labels of `videos`.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of the data, for the model card.")] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Write an index of a dataset and its entry in params.yaml, then run `dvc repro ingest@NAME`."""
    from rich.progress import Progress

    from masm.data.importing import Request, import_dataset
    from masm.data.versions import reproduce

    if params.name != "params.yaml":
        raise UserError(
            f"--params {params}: the stages read params.yaml, and the import writes its entry there alone."
        )
    settings = load_settings(params)
    chosen = None if splits is None else tuple(splits.split(","))
    request = Request(layout, path, name, role, root, chosen, strict, compression, labels, licence)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"import {name}", total=None)
        found = import_dataset(settings, request, lambda done, total: bar.update(task, completed=done, total=total))
    _print_imported(name, found)
    activate()
    if exit_code := reproduce(settings.root, f"ingest@{name}"):
        raise typer.Exit(exit_code)


def _print_imported(name: str, found: Imported) -> None:
    """What an import found: counts, what was left out, and what straddles splits."""
    console = Console()
    console.print(f"{name}: {found.files} files, {found.missing} of them missing", highlight=False)
    table = Table("split", "method", "videos")
    for (split, method), videos in sorted(found.videos.items()):
        table.add_row(split, method, str(videos))
    console.print(table)
    for what, count in sorted(found.notes.items()):
        console.print(f"{what}: {count}", markup=False, highlight=False)
    if found.straddling:
        listed = [f"{clip} ({', '.join(sorted(splits))})" for clip, splits in sorted(found.straddling.items())]
        shown = "; ".join(listed[:10]) + (" ..." if len(listed) > 10 else "")
        console.print(f"{len(listed)} recordings straddle splits: {shown}", markup=False, highlight=False)
    console.print(f"datasets.{name} of params.yaml takes {', '.join(found.entry.splits)} as {found.entry.role}")


@app.command("export")
def data_export(
    name: Annotated[str, typer.Argument(help="A dataset of params.yaml.")],
    out: Annotated[Path, typer.Argument(help="A .json file over the imported files, or a folder for the crops.")],
    layout: Annotated[str, typer.Option(help="deepfakebench is the only one.")] = "deepfakebench",
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Write a dataset so that DeepfakeBench reads it."""
    from masm.data.exporting import export_crops, export_manifest

    if layout != "deepfakebench":
        raise UserError(f"there is no export to layout {layout!r}: use deepfakebench.")
    settings = load_settings(params)
    exported = (export_manifest if out.suffix == ".json" else export_crops)(settings, name, out)
    Console().print(f"{exported.manifest}; its paths begin at {exported.root}", markup=False, highlight=False)


@app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A dataset.")],
    revision: Annotated[str, typer.Option(help="A commit, tag or branch.")] = "HEAD",
    out: Annotated[Path | None, typer.Option(help="The folder that is made; NAME-REVISION if not given.")] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Bring a dataset's face table here as it was at a revision, and print its MD5."""
    from masm.data.versions import fetch_table

    folder = out or Path(f"{name}-{revision.replace('/', '-')}")
    digest = fetch_table(params.resolve().parent, name, revision, folder)
    Console().print(f"{folder}: {digest}", markup=False, highlight=False, soft_wrap=True)


@app.command("list-layouts")
def data_list_layouts() -> None:
    """Explain each layout that can be imported, with the tree that it expects."""
    from masm.data.importers.layouts import LAYOUTS

    console = Console()
    for layout in LAYOUTS.values():
        console.print(f"[bold]{layout.name}[/]: {layout.summary}", highlight=False)
        console.print("\n".join(f"    {line}" for line in layout.tree.splitlines()), markup=False, highlight=False)
    console.print(f"[bold]folder[/]: {FOLDER_SUMMARY}", highlight=False)
