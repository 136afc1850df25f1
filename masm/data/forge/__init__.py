"""Forgeries made from real faces, drawn or photographed, each with its mask and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from masm.data.faces import Face
from masm.data.forge import pixels
from masm.data.forge.methods import Denoise, Method, Reenact, Scene, SelfBlend, Swap, Upsample
from masm.errors import UserError

FORGERIES: dict[str, type[Method]] = {
    "swap": Swap,
    "reenact": Reenact,
    "selfblend": SelfBlend,
    "upsample": Upsample,
    "denoise": Denoise,
}
NEEDS_LANDMARKS = frozenset({"swap", "reenact"})


@dataclass(frozen=True)
class Forgery:
    """A forged photograph.

    Attributes:
        image: (H, W, 3) uint8 RGB; equal to the real one, bit for bit, where the mask is 0.
        mask: (H, W) uint8, the weight 0..255 with which the forged face was blended in.
        parameters: the method's name and everything drawn for it, ready for JSON.
    """

    image: np.ndarray
    mask: np.ndarray
    parameters: dict[str, float | int | str]


def forge(method: str, face: Face, rng: np.random.Generator, donor: Face | None = None) -> Forgery:
    """Make a forgery with parameters drawn from `rng`.

    Args:
        method: a key of `FORGERIES`.
        face: the real face; the camera's noise should be in it, since its loss is what gives forgeries away.
        rng: the only source of chance.
        donor: the face that `swap` puts in; from the same camera.

    Raises:
        UserError: the method is unknown, or needs landmarks or a donor that are not there.
    """
    if method not in FORGERIES:
        raise UserError(f"unknown forgery {method!r}: use one of {', '.join(FORGERIES)}")
    drawn = FORGERIES[method].draw(rng)
    return repeat({"method": method, **asdict(drawn)}, face, donor)


def repeat(parameters: Mapping[str, Any], face: Face, donor: Face | None = None) -> Forgery:
    """Make the forgery that `parameters` record; the same inputs give the same forgery.

    Raises:
        UserError: as for `forge`.
    """
    values = dict(parameters)
    method = FORGERIES[values.pop("method")](**values)
    mask = method.mask(face)
    image = pixels.blend(face.image, method.render(Scene(face, mask, donor)), mask)
    return Forgery(image, mask, dict(parameters))
