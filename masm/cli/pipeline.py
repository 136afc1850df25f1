"""`masm demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from masm.cli.shared import activate
from masm.errors import UserError
from masm.settings import load_settings

app = typer.Typer()


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
    activate()
    exit_code = reproduce(workspace)
    if exit_code:
        raise typer.Exit(exit_code)
    push(workspace)
    print_summary(settings, Console())
