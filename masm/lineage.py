"""What a model came from: code revision, settings, protocol, data and environment, as tags for its run."""

from __future__ import annotations

import hashlib
import site
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from masm.settings import OPERATION, Settings, fingerprint

PROTOCOL = "1: video score = mean of its frames; AUC against all reals of a dataset; mean over test datasets"
"""How models are compared. Models judged by different texts are not comparable: number every change."""

# DVC writes these itself while a pipeline runs, so that they differ from the last commit says nothing.
_WRITTEN_BY_DVC = ("dvc.lock", ".dvc/**", ".gitignore", ".dvcignore", "reports/**", "search/**", "models/**")


def lineage(settings: Settings, digests: dict[str, str]) -> dict[str, str]:
    """Tags that trace a model back to all that made it.

    Args:
        settings: all of params.yaml.
        digests: MD5 of each dataset's face table, from dvc.lock.

    Returns:
        `git.commit` ("none" outside a repository), `git.dirty` ("true" where tracked code or settings differ
        from the commit), `settings.hash`, `protocol.hash`, `environment.hash`, and `data.NAME` per dataset.
    """
    code = settings.path(settings.code)
    return {
        "git.commit": _git(code, "rev-parse", "HEAD").strip() or "none",
        "git.dirty": str(bool(code_changes(code))).lower(),
        "settings.hash": settings_hash(settings),
        "protocol.hash": protocol_hash(settings),
        "environment.hash": hashlib.sha256("\n".join(environment()).encode()).hexdigest(),
        **{f"data.{name}": digest for name, digest in digests.items()},
    }


def is_clean(tags: Mapping[str, str]) -> bool:
    """Whether these tags of `lineage` name a commit that holds all tracked code and settings of the model."""
    return tags.get("git.commit", "none") != "none" and tags.get("git.dirty") == "false"


def settings_hash(settings: Settings) -> str:
    """Stands for all settings that say what comes out."""
    return fingerprint(settings.model_dump(mode="json", exclude=set(OPERATION)))


def protocol_hash(settings: Settings) -> str:
    """Stands for what models are judged on and how; the data themselves have digests of their own."""
    return fingerprint(PROTOCOL, sorted(settings.with_role("test")))


@cache
def environment() -> tuple[str, ...]:
    """The installed distributions as sorted `name==version`; read once, which takes most of a second.

    Those of site-packages: setuptools and Ray, once they are imported, add packages of their own to sys.path.
    """
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return tuple(sorted({f"{item.name.lower()}=={item.version}" for item in distributions(path=folders)}))


def code_changes(folder: Path) -> str:
    """The diff of tracked files around `folder` to the last commit, without what DVC writes itself."""
    excluded = [f":(top,exclude,glob)**/{pattern}" for pattern in _WRITTEN_BY_DVC]
    return _git(folder, "diff", "HEAD", "--", ":(top)", *excluded)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing outside a repository, before its first commit, or where git is missing."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        printed = subprocess.run(command, capture_output=True, check=True).stdout
        return printed.decode(errors="replace")
    except (OSError, subprocess.CalledProcessError):
        return ""
