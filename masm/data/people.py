"""Who belongs to which role and split: people are divided once, for all datasets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from masm.errors import UserError
from masm.settings import Faces, Role, Split


class Place(NamedTuple):
    """The datasets that a person may appear in, and the split there."""

    role: Role
    split: Split


def divide_people(people: Iterable[str], faces: Faces, seed: int) -> dict[str, Place]:
    """Give every person one place, by the shares in params.yaml; the order of `people` does not matter.

    Raises:
        UserError: a place would get fewer than two people (a swap needs two).
    """
    names = sorted(set(people))
    order = [names[i] for i in np.random.default_rng((seed, len(names))).permutation(len(names))]
    train = round(faces.shares["train"] * len(order))
    kept = max(2, round(faces.validation_share * train))
    validate = round(faces.shares["validate"] * len(order))
    counts = {
        Place("train", "train"): train - kept,
        Place("train", "val"): kept,
        Place("validate", "val"): validate,
        Place("test", "test"): len(order) - train - validate,
    }
    for place, count in counts.items():
        if count < 2:
            raise UserError(
                f"faces.shares leaves {max(count, 0)} of {len(order)} people for {place.role}/{place.split}, where 2 "
                "are needed: give more people or other shares."
            )
    places = [place for place, count in counts.items() for _ in range(count)]
    return dict(zip(order, places, strict=True))
