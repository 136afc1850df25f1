"""`masm backbone`: weight files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from masm.errors import UserError

if TYPE_CHECKING:
    from masm.backbones.inspection import Inspection


app = typer.Typer(help="Weight files: see what they are, convert them.", no_args_is_help=True)


@app.command("inspect")
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


@app.command("convert")
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
