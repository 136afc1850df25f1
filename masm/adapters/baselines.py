"""Other ways to adapt a backbone, behind the same call as the method itself."""

from __future__ import annotations

from torch import nn


def probe(model: nn.Module) -> None:
    """Freeze everything: only a head on top of `model` learns."""
    model.requires_grad_(False)
