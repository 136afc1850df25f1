"""Where real photographs come from: one file per source, each giving `Photograph`s."""

from __future__ import annotations

from collections.abc import Sequence

from masm.data.importers.drawn import drawn_photographs
from masm.data.importers.folder import folder_photographs
from masm.data.importers.photograph import Photograph
from masm.settings import Settings

__all__ = ["Photograph", "photographs_of"]


def photographs_of(settings: Settings) -> Sequence[Photograph]:
    """All photographs of the source that params.yaml names, sorted by name."""
    if settings.faces.source == "drawn":
        return drawn_photographs(settings)
    return folder_photographs(settings)
