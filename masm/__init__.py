"""Train, search, compare, promote and serve face-forgery detectors."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("masm")
except PackageNotFoundError:  # carried inside a registered model: no installation, so no metadata
    __version__ = "0+carried"
