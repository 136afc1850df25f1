"""The `masm` command."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from masm.console import exit_codes
from masm.errors import UserError
from masm.settings import load_settings

app = typer.Typer(help="Train, search, compare, promote and serve face-forgery detectors.", no_args_is_help=True)
registry_app = typer.Typer(help="The registered models.", no_args_is_help=True)
app.add_typer(registry_app, name="registry")

ParamsOption = Annotated[Path, typer.Option("--params", help="The workspace's params.yaml.")]


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
    # The stages say `python`: let that be this one, whether or not its environment is activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    exit_code = reproduce(workspace)
    if exit_code:
        raise typer.Exit(exit_code)
    push(workspace)
    print_summary(settings, Console())


@registry_app.command("list")
def registry_list(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Show the versions of the registered model, their aliases and their cross-dataset scores."""
    from masm import registry

    settings = load_settings(params)
    versions = registry.list_versions(registry.connect(settings.mlflow), settings.mlflow.model)
    if as_json:
        typer.echo(json.dumps([asdict(version) for version in versions], default=str, indent=2))
        return
    table = Table(
        "version", "aliases", "video AUC", "95 % interval", "verdict", "created", title=settings.mlflow.model
    )
    for version in versions:
        auc = version.video_auc
        table.add_row(
            str(version.version),
            ", ".join(version.aliases),
            "" if auc is None else f"{auc.value:.3f}",
            "" if auc is None else auc.interval(),
            version.verdict or "",
            f"{version.created:%Y-%m-%d %H:%M}",
        )
    Console().print(table)


def main() -> None:
    """Run the command; mistakes end with one message and their exit code."""
    with exit_codes():
        app()
