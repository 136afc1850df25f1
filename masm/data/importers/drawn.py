"""Embedded data: people who do not exist, drawn by `masm.data.procedural`."""

from __future__ import annotations

from dataclasses import dataclass

from masm.data.faces import Face
from masm.data.importers.photograph import Named
from masm.data.procedural import draw_face
from masm.settings import Settings


@dataclass(frozen=True)
class DrawnPhotograph(Named):
    """A portrait that is drawn when it is asked for."""

    seed: int
    person: int
    photograph: int
    size: int

    def face(self) -> Face:
        """The drawn face, with its landmarks."""
        return draw_face(self.seed, self.person, self.photograph, self.size)


def drawn_photographs(settings: Settings) -> list[DrawnPhotograph]:
    """`faces.photographs` portraits of each of `faces.people` people."""
    return [
        DrawnPhotograph(
            name=f"drawn-{person:05d}-{photograph}",
            identity=f"drawn-{person:05d}",
            seed=settings.seed,
            person=person,
            photograph=photograph,
            # A drawn face fills about half of its canvas.
            size=2 * settings.crop.working_size,
        )
        for person in range(settings.faces.people)
        for photograph in range(settings.faces.photographs)
    ]
