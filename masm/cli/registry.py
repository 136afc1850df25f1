"""`masm registry`: the registered models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from masm.cli.shared import JsonOption, ParamsOption
from masm.console import STDERR
from masm.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

app = typer.Typer(help="The registered models.", no_args_is_help=True)


@app.command("list")
def registry_list(
    as_json: JsonOption = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Show the versions of the registered model, their aliases and their cross-dataset scores."""
    from masm import registry
    from masm.registry.tables import versions_table

    with _registry(params) as (settings, client):
        name = settings.mlflow.model
        registry.notice(client, name)
        versions = registry.list_versions(client, name)
    _print(as_json, versions, lambda: versions_table(name, versions))


@app.command("show")
def registry_show(
    version: Annotated[str, typer.Argument(help="A number, champion, or an alias.")] = "champion",
    as_json: JsonOption = False,
    params: ParamsOption = Path("params.yaml"),
) -> None:
    """Show what is known of a version: verdict, conditions, lineage; and the trail of promotions."""
    from masm import registry
    from masm.registry.tables import details_table

    with _registry(params) as (settings, client):
        name = settings.mlflow.model
        registry.notice(client, name)
        found = registry.show(client, registry.resolve(client, name, version))
    _print(as_json, found, lambda: details_table(found))


@app.command("compare")
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

    with _registry(params) as (settings, client):
        name = settings.mlflow.model
        versions = [registry.resolve(client, name, said) for said in (a, b)]
        with STDERR.status("compare"):
            rows = compare_versions(client, settings, *versions)
    titles = [registry.label(version) for version in versions]
    _print(as_json, rows, lambda: comparison_table(titles, rows))


@app.command("promote")
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

    with _registry(params) as (settings, client):
        name = settings.mlflow.model
        chosen = registry.resolve(client, name, version)
        with STDERR.status("promote"):
            verdict, row = promote_version(client, settings, chosen, "masm registry promote", force)
    console = Console()
    console.print(f"{name} version {row.version} is {', '.join(row.aliases)}: {verdict.reason}", highlight=False)
    if not verdict.promoted and force is None:
        raise typer.Exit(3)


@app.command("rollback")
def registry_rollback(params: ParamsOption = Path("params.yaml")) -> None:
    """Make the former champion champion again; a second time undoes the first."""
    from masm.gate import roll_back

    with _registry(params) as (settings, client):
        row = roll_back(client, settings, "masm registry rollback")
    Console().print(f"{settings.mlflow.model} version {row.version} is {', '.join(row.aliases)}", highlight=False)


@contextmanager
def _registry(params: Path) -> Iterator[tuple[Settings, MlflowClient]]:
    """The settings and the registry's client; where MLflow fails meanwhile, that is said in a sentence."""
    from masm import registry

    settings = load_settings(params)
    client = registry.connect(settings.mlflow)
    with registry.answering(settings.mlflow):
        yield settings, client


def _print(as_json: bool, found: Any, table: Callable[[], Table]) -> None:
    """Print dataclasses as JSON, or as the table that shows them."""
    if as_json:
        rows = [asdict(row) for row in found] if isinstance(found, list) else asdict(found)
        typer.echo(json.dumps(rows, default=str, indent=2))
    else:
        Console().print(table())
