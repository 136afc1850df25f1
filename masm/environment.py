"""Whether the environment that a job finds on a cluster is the one of its lock file: `python -m masm.environment`.

It runs before the stage, with the cluster's `python`, so that it needs the standard library and packaging alone.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCK, PROJECT = "requirements.lock", "pyproject.toml"
SHOWN = 5
"""Packages that are named; a wrong environment has hundreds."""


def faults(lock: str, project: str, python: str, installed: Mapping[str, str]) -> list[str]:
    """What an environment has otherwise than a lock file, in words.

    A build for other devices (2.14.0+cu128 for 2.14.0) is the same version; a package beyond the lock is no fault, nor
    is a missing one that the project does not depend on itself (the lock has the developers' tools, too).

    Args:
        lock: text of requirements.lock.
        project: text of pyproject.toml.
        python: version of the interpreter.
        installed: version by canonical name.

    Returns:
        A phrase for each; empty where the environment will do.
    """
    declared = tomllib.loads(project)["project"]
    if python not in SpecifierSet(declared["requires-python"]):
        return [f"Python {python} is there, {declared['requires-python']} is needed"]
    needed = {canonicalize_name(Requirement(line).name) for line in declared["dependencies"]}
    missing = sorted(needed - installed.keys())
    return [f"{name} is missing" for name in missing] + [
        f"{name} {installed[name]} is there, {version} in the lock"
        for name, version in _locked(lock).items()
        if name in installed and Version(installed[name]).public != Version(version).public
    ]


def _locked(lock: str) -> dict[str, str]:
    """The versions that a lock file has for this platform, by canonical name."""
    found: dict[str, str] = {}
    for line in lock.splitlines():
        if line[:1].isalnum():
            requirement = Requirement(line.removesuffix("\\").strip())
            if requirement.marker is None or requirement.marker.evaluate():
                (pin,) = requirement.specifier
                found[canonicalize_name(requirement.name)] = pin.version
    return found


def versions(found: Iterable[Distribution]) -> dict[str, str]:
    """The version of each package by canonical name: the first one, as of two the first on the path is imported.

    What an interrupted installation has left, a folder without a name, is no package.
    """
    first: dict[str, str] = {}
    for one in found:
        name = None
        with suppress(OSError, KeyError):  # by which some versions of importlib.metadata say that there is none
            name = one.metadata["Name"]
        if name:
            first.setdefault(canonicalize_name(name), one.version)
    return first


def main() -> None:
    """Compare this environment with the lock file beside the package; exit code 2 where it is another."""
    root = Path(__file__).parents[1]
    installed = versions(distributions())
    python = ".".join(map(str, sys.version_info[:3]))  # some call themselves 3.12.3+
    found = faults((root / LOCK).read_text(), (root / PROJECT).read_text(), python, installed)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        sys.stderr.write(
            f"error: the cluster's environment ({sys.executable}) is not that of {LOCK}: "
            f"{'; '.join(found[:SHOWN])}{more}. Build its image from this lock (infra/Containerfile), start Ray with "
            "the programs of that environment first on PATH, or submit with --install.\n"
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
