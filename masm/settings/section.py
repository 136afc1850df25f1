"""What every part of params.yaml is made of."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
FileName = Annotated[str, Field(pattern=r"^[\w+-]+$")]


class Section(BaseModel):
    """A part of params.yaml: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`values`; an error where one stands twice."""
    if doubled := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{doubled[0]} stands twice: take one of them out")
    return values


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that stand for these sections and values: the name of the work in progress."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]
