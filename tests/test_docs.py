"""The documentation against the code: commands parse, modules and pages exist, settings are named as they are."""

from __future__ import annotations

import importlib.util
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from masm.cli import app
from masm.settings import Settings
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "infra" / "README.md"]
RECORDS = {page for page in PAGES if page.name == "log.md" or page.parent.name == "decisions"}
"""What was so at its date, and need not be any more."""
GUIDES = [page for page in PAGES if page not in RECORDS]
CODE = sorted(path for folder in ("masm", "pipelines") for path in (ROOT / folder).rglob("*.py"))
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FIGURES = {ROOT / "docs" / "reference" / "benchmarks.md"}
"""Pages whose dotted names are figures, not settings."""
NO_SETTINGS = {"json", "yaml", "db", "csv", "html", "parquet", "sha256"}
"""Parts of names that files and tags have."""

COMMANDS = typer.main.get_command(app)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[str]:
    return FENCE.findall(page.read_text())


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of blocks; a span may go on in the next line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def command_lines(page: Path) -> Iterator[str]:
    """The lines of blocks that call `masm`, without their comments; a line that ends in a backslash goes on."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip().startswith("masm "):
                yield line.strip()


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


def resolve(arguments: list[str]) -> tuple[typing.Any, list[str]]:
    """The command that words begin with, and what is left of them."""
    command: typing.Any = COMMANDS
    while arguments and getattr(command, "commands", None):
        name = arguments[0]
        assert name in command.commands, f"there is no command {name!r} among {sorted(command.commands)}"
        command, arguments = command.commands[name], arguments[1:]
    return command, arguments


def options(command: typing.Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_command_lines_parse(page: Path) -> None:
    for line in command_lines(page):
        command, arguments = resolve(words(line))
        assert not getattr(command, "commands", None), f"{line}: which command of the group?"
        command.make_context("masm", arguments)  # raises where an option is unknown or an argument is missing


@pytest.mark.parametrize("path", [*GUIDES, *CODE, ROOT / "params.yaml"], ids=named)
def test_commands_that_sentences_name_exist(path: Path) -> None:
    """Also in error messages and docstrings; such a command may stand without its arguments."""
    for span in spans(path.read_text()):
        if span.startswith("masm "):
            command, arguments = resolve(span.replace("...", "").split()[1:])
            unknown = {word.split("=")[0] for word in arguments if word.startswith("--")} - options(command)
            assert not unknown, f"{span}: there is no option {unknown}"


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_modules_to_run_exist(page: Path) -> None:
    for module in re.findall(r"python -m ([\w.]+)", page.read_text()):
        if not re.search(r"\b[A-Z]", module):  # pipelines.NAME stands for any
            assert importlib.util.find_spec(module) is not None, f"python -m {module}: there is no such module"


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line.strip() for block in blocks(page) for line in block.splitlines()]
    for line in [*lines, *spans(page.read_text())]:
        if line.startswith("make "):
            assert line.split()[1] in targets, f"{line}: the Makefile has no such target"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\(((?!\w+:)[^)#\s]*)(#([^)\s]+))?\)", FENCE.sub("", page.read_text())):
        aim = (page.parent / target).resolve() if target else page
        assert aim.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in headings(aim), f"{target}#{anchor}: there is no such heading"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_readme_links_every_guide() -> None:
    linked = {
        (ROOT / target).resolve() for target in re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text())
    }
    pages = [page for folder in ("how-to", "tutorial") for page in (ROOT / "docs" / folder).glob("*.md")]
    assert not [named(page) for page in pages if page not in linked]


@pytest.mark.parametrize("page", [page for page in GUIDES if page not in FIGURES], ids=named)
def test_settings_have_these_names(page: Path) -> None:
    for span in spans(page.read_text()):
        key = re.fullmatch(r"([a-z_]+(?:\.[\w-]+)+)(?:[:=] ?[^/]*)?", span)
        if key is not None and is_setting_like(key[1]):
            assert has_setting(key[1]), f"{span}: params.yaml has no such key"


def is_setting_like(name: str) -> bool:
    """It begins with a section, and is no file and no hash."""
    first, *others = name.split(".")
    return first in Settings.model_fields and not NO_SETTINGS & set(others)


def has_setting(name: str) -> bool:
    places: list[typing.Any] = [Settings]
    for part in name.split("."):
        places = [child for place in places for child in children(place, part)]
    return bool(places)


def children(annotation: typing.Any, key: str) -> list[typing.Any]:
    """The annotations that a key of a section or a mapping can have."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        return [fields[key].annotation] if key in fields else []
    if typing.get_origin(annotation) is dict:
        return [typing.get_args(annotation)[1]]
    return [child for inner in typing.get_args(annotation) for child in children(inner, key)]


def test_a_wrong_name_is_found() -> None:
    """The checks above see what they look for."""
    assert has_setting("search.space.rank.values")
    assert has_setting("datasets.anything.forgeries")
    assert has_setting("crop.detector_weights")
    assert not has_setting("crop.detectors")
    assert not has_setting("datasets.anything.colour")
    with pytest.raises(AssertionError, match="no command 'rigestry'"):
        resolve(["rigestry", "list"])
    command, arguments = resolve(["data", "fetch", "cdf2", "--revison", "v1"])
    with pytest.raises(Exception, match="No such option"):
        command.make_context("masm", arguments)
