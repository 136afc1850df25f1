"""What every importer gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from masm.data.faces import Face


class Unusable(Exception):
    """A photograph from which no face can be taken; it is counted and listed, never replaced."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(outcome, reason)  # both, so that it survives the way between processes
        self.outcome = outcome
        self.reason = reason


class Photograph(Protocol):
    """One photograph of one person, opened when it is needed."""

    @property
    def name(self) -> str:
        """Unique in the source."""

    @property
    def identity(self) -> str:
        """The person."""

    def face(self) -> Face:
        """The face, at the working size.

        Raises:
            Unusable: the photograph is unreadable, or has no face.
        """


@dataclass(frozen=True)
class Named:
    """The two names that every photograph has."""

    name: str
    identity: str
