"""The `masm` command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from masm.console import exit_codes
from masm.errors import UserError
from masm.settings import Role, Settings, load_settings

if TYPE_CHECKING:
    from masm.backbones.inspection import Inspection
    from masm.data.importing import Imported

app = typer.Typer(help="Train, search, compare, promote and serve face-forgery detectors.", no_args_is_help=True)
registry_app = typer.Typer(help="The registered models.", no_args_is_help=True)
app.add_typer(registry_app, name="registry")
data_app = typer.Typer(help="Datasets: bring them in, hand them on.", no_args_is_help=True)
app.add_typer(data_app, name="data")
backbone_app = typer.Typer(help="Weight files: see what they are, convert them.", no_args_is_help=True)
app.add_typer(backbone_app, name="backbone")

FOLDER_SUMMARY = (
    "photographs of real people alone; forgeries are made from them here: run `masm demo --faces SRC`, or set "
    "faces.source: photographs"
)


ParamsOption = Annotated[Path, typer.Option("--params", help="The workspace's params.yaml.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def demo(
    faces: Annotated[Path | None, typer.Option(help="A folder of photographs named PERSON_anything.")] = None,
    backbone: Annotated[Path | None, typer.Option(help="MODEL.safetensors, named by its timm model.")] = None,
    face_detector: Annotated[Path | None, typer.Option(help="YuNet's .onnx file.")] = None,
) -> None:
    """Run the whole pipeline, on drawn faces or on a folder of photographs, and show what came out."""
    from masm.data.versions import push, reproduce
    from masm.summary import print_summary
    from masm.workspace import YUNET, Source, create_workspace

    root = Path.cwd()
    workspace = root
    if faces is not None:
        found = face_detector or (root / YUNET if (root / YUNET).exists() else None)
        workspace = create_workspace(root, Source(faces, backbone, found))
        if found is None:
            Console().print(
                "No YuNet file was given: faces are found by OpenCV's cascade, which gives no landmarks, so that only "
                "selfblend, upsample and denoise are made.",
                style="yellow",
            )
    elif backbone is not None or face_detector is not None:
        raise UserError("BACKBONE and DETECTOR go with FACES: give a folder of photographs, too.")
    settings = load_settings(workspace / "params.yaml")
    _activate()
    exit_code = reproduce(workspace)
    if exit_code:
        raise typer.Exit(exit_code)
    push(workspace)
    print_summary(settings, Console())


def _activate() -> None:
    """The stages say `python`: let that be this one, whether or not its environment is activated."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@app.command()
def embed(
    out: Annotated[Path, typer.Option(help="The Parquet file to write; one of embeddings is replaced.")],
    datasets: Annotated[
        list[str] | None,
        typer.Argument(help="Datasets of params.yaml; without, those of role test.", metavar="DATASET"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A detector's folder, models:/NAME@ALIAS or models:/NAME/VERSION.")
    ] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Write the embeddings of every frame of some datasets by a detector, models/detector where none is named."""
    import torch
    from rich.progress import Progress

    from masm.detector import Detector
    from masm.embeddings import check_embeddings_file, every_frame, origin_of, write_embeddings

    settings = load_settings(params)
    if out.exists():
        check_embeddings_file(out)
    named = datasets or settings.with_role("test")
    frames = every_frame(settings, named)
    with _detector_folder(settings, model) as folder:
        detector = Detector.load(folder, merged=True).to("cuda" if torch.cuda.is_available() else "cpu")
        origin = origin_of(settings, named, model or "models/detector", folder)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("embed", total=sum(map(len, frames.values())))
        write_embeddings(out, detector, settings, frames, origin, lambda done: bar.advance(task, done))
    Console().print(f"{out}: embeddings of {sum(map(len, frames.values()))} frames", markup=False, highlight=False)


def _detector_folder(settings: Settings, model: str | None) -> AbstractContextManager[Path]:
    """Where a detector lies: the workspace's own, a folder, or a copy of a registered one."""
    if model is None or not model.startswith("models:"):
        return nullcontext(settings.root / "models" / "detector" if model is None else Path(model))
    from masm import registry

    client = registry.connect(settings.mlflow)
    return registry.stored_detector(client, registry.find_version(client, model))


@data_app.command("import")
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
    _activate()
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


@data_app.command("export")
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


@data_app.command("fetch")
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


@data_app.command("list-layouts")
def data_list_layouts() -> None:
    """Explain each layout that can be imported, with the tree that it expects."""
    from masm.data.importers.layouts import LAYOUTS

    console = Console()
    for layout in LAYOUTS.values():
        console.print(f"[bold]{layout.name}[/]: {layout.summary}", highlight=False)
        console.print("\n".join(f"    {line}" for line in layout.tree.splitlines()), markup=False, highlight=False)
    console.print(f"[bold]folder[/]: {FOLDER_SUMMARY}", highlight=False)


@backbone_app.command("inspect")
def backbone_inspect(
    path: Annotated[Path, typer.Argument(help="A weight file, or the folder of a detector.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a weight file is, which timm models it fits, and how it would be pooled and normalised."""
    from masm.backbones.inspection import inspect_file

    found = inspect_file(path)
    if as_json:
        typer.echo(json.dumps(asdict(found), default=str, indent=2))
    else:
        _print_inspection(found)


def _print_inspection(found: Inspection) -> None:
    undecided = " (set backbone.layout)" if len(found.kinds) > 1 else ""
    lines = {
        "file": found.path,
        "sha256": found.sha256,
        "kind": " or ".join(found.kinds) + undecided,
        "backbone": f"{found.parameters:,} parameters, {found.depth} blocks of width {found.embed_dim}",
        "input": f"{found.image_size} px, patches of {found.patch_size} px, {found.tokens} position embeddings",
        "left out": ", ".join(found.left_out) or "nothing",
        "head": "none that can be used" if found.classes is None else f"logits of {', '.join(found.classes)}",
    }
    for what, value in lines.items():
        typer.echo(f"{what + ':':<10}{value}")
    for fit in found.fits:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (fit.mean, fit.std))
        typer.echo(f"{'fits:':<10}{fit.name} ({fit.kind}), pooling {fit.pooling}, mean {mean}, std {std}")
    if not found.fits:
        typer.echo(f"{'fits:':<10}none of timm's models whose names say this width and patch")


@backbone_app.command("convert")
def backbone_convert(
    path: Annotated[Path, typer.Argument(help="What torch.save wrote: .pth, .pt or .bin.", metavar="FILE")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.", metavar="OUT")],
    yes: Annotated[bool, typer.Option("--yes", help="Run code of the file without asking.")] = False,
) -> None:
    """Write the tensors of a checkpoint as safetensors.

    A file of tensors alone is read without running code. One that holds more is unpickled in a process of its
    own, after a question, as this runs any code that the file brings: with your user's rights, with the
    network, in another folder and without this shell's environment variables. That is no sandbox: where you do
    not trust a file, convert it in a container.
    """
    from masm.backbones.checkpoint import NeedsCodeError
    from masm.backbones.conversion import convert

    try:
        convert(path, out, run_code=yes)
    except NeedsCodeError as error:
        question = f"{path} holds more than tensors ({error.found}): unpickling it runs code that it brings. Go on?"
        if not _agreed(question):
            raise UserError(f"{path} was not converted: answer y, or give --yes where nobody can be asked.") from None
        convert(path, out, run_code=True)
    typer.echo(f"{out} written; `masm backbone inspect {out}` says what it is.")


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False


@registry_app.command("list")
def registry_list(
    as_json: JsonOption = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Show the versions of the registered model, their aliases and their cross-dataset scores."""
    from masm import registry
    from masm.registry.tables import versions_table

    settings = load_settings(params)
    client, name = registry.connect(settings.mlflow), settings.mlflow.model
    with registry.answering(settings.mlflow):
        registry.notice(client, name)
        versions = registry.list_versions(client, name)
    _print(as_json, versions, lambda: versions_table(name, versions))


@registry_app.command("show")
def registry_show(
    version: Annotated[str, typer.Argument(help="A number, champion, or an alias.")] = "champion",
    as_json: JsonOption = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Show what is known of a version: verdict, conditions, lineage; and the trail of promotions."""
    from masm import registry
    from masm.registry.tables import details_table

    settings = load_settings(params)
    client, name = registry.connect(settings.mlflow), settings.mlflow.model
    with registry.answering(settings.mlflow):
        registry.notice(client, name)
        found = registry.show(client, registry.resolve(client, name, version))
    _print(as_json, found, lambda: details_table(found))


@registry_app.command("compare")
def registry_compare(
    a: Annotated[str, typer.Argument(help="A version: a number, champion, or an alias.", metavar="A")],
    b: Annotated[str, typer.Argument(help="The version that it is held against.", metavar="B")] = "champion",
    as_json: JsonOption = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Compare two versions on the test datasets, paired: by their recorded scores, or scored anew."""
    from masm import registry
    from masm.gate import compare_versions
    from masm.registry.tables import comparison_table

    settings = load_settings(params)
    client, name = registry.connect(settings.mlflow), settings.mlflow.model
    with registry.answering(settings.mlflow):
        versions = [registry.resolve(client, name, said) for said in (a, b)]
        with Console(stderr=True).status("compare"):
            rows = compare_versions(client, settings, *versions)
    titles = [f"version {version.version}" for version in versions]
    _print(as_json, rows, lambda: comparison_table(titles, rows))


@registry_app.command("promote")
def registry_promote(
    version: Annotated[str, typer.Argument(help="A number, or an alias as in challenger.")],
    force: Annotated[
        str | None, typer.Option(help="Promote it against the gate's verdict, for this reason.", metavar="REASON")
    ] = None,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Judge a version by the gate; make it champion if it wins (exit code 3 if it is held)."""
    from masm import registry
    from masm.gate import promote_version

    settings = load_settings(params)
    client, name = registry.connect(settings.mlflow), settings.mlflow.model
    with registry.answering(settings.mlflow):
        chosen = registry.resolve(client, name, version)
        with Console(stderr=True).status("promote"):
            verdict, row = promote_version(client, settings, chosen, "masm registry promote", force)
    console = Console()
    console.print(f"{name} version {row.version} is {', '.join(row.aliases)}: {verdict.reason}", highlight=False)
    if not verdict.promoted and force is None:
        raise typer.Exit(3)


@registry_app.command("rollback")
def registry_rollback(params: ParamsOption = Path("params.yaml")) -> None:
    """Make the former champion champion again; a second time undoes the first."""
    from masm import registry
    from masm.gate import roll_back

    settings = load_settings(params)
    client = registry.connect(settings.mlflow)
    with registry.answering(settings.mlflow):
        row = roll_back(client, settings, "masm registry rollback")
    Console().print(f"{settings.mlflow.model} version {row.version} is {', '.join(row.aliases)}", highlight=False)


def _print(as_json: bool, found: Any, table: Callable[[], Table]) -> None:
    """Print dataclasses as JSON, or as the table that shows them."""
    if as_json:
        rows = [asdict(row) for row in found] if isinstance(found, list) else asdict(found)
        typer.echo(json.dumps(rows, default=str, indent=2))
    else:
        Console().print(table())


def main() -> None:
    """Run the command; mistakes end with one message and their exit code."""
    with exit_codes():
        app()
