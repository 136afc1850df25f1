from __future__ import annotations

from collections import Counter

import pytest

from masm.data.people import Place, divide_people
from masm.errors import UserError
from masm.settings import Faces


def faces(train: float = 0.6, validate: float = 0.15) -> Faces:
    shares = {"train": train, "validate": validate, "test": 1 - train - validate}
    return Faces(source="drawn", people=1, shares=shares, validation_share=0.2)


def test_everybody_has_one_place_and_the_shares_hold() -> None:
    people = [f"person-{i}" for i in range(100)]
    places = divide_people(people, faces(), seed=3)
    assert set(places) == set(people)
    assert Counter(places.values()) == {
        Place("train", "train"): 48,
        Place("train", "val"): 12,
        Place("validate", "val"): 15,
        Place("test", "test"): 25,
    }


def test_neither_order_nor_repetition_matters_but_the_seed_does() -> None:
    people = [f"person-{i}" for i in range(40)]
    first = divide_people(people, faces(), seed=3)
    assert divide_people(people[::-1] + people, faces(), seed=3) == first
    assert divide_people(people, faces(), seed=4) != first


def test_too_few_people_for_a_place() -> None:
    with pytest.raises(UserError, match="leaves 1 of 8 people for validate/val"):
        divide_people([str(i) for i in range(8)], faces(), seed=0)
