"""Multi-artifact subspaces for any timm vision transformer, and the methods they are compared with.

`adapt(model, settings)` puts the subspaces in (or another method), `LayerMask` decides which of them may
move, `penalty` weighs orthogonality and spectral consistency, `shares` says which subspace fired,
and `merge(model)` returns a plain timm model again. Nothing is read or written but the decompositions, where
a folder for them is given. The method is MASM (arXiv 2601.01041, renamed FMSD in its v3); its authors have
published no code, so whatever a docstring calls "ours" is our reconstruction.
"""

from __future__ import annotations

from masm.adapters.layer_mask import LayerMask
from masm.adapters.placement import adapt, adapted_layers, merge
from masm.adapters.regularizers import penalty
from masm.adapters.settings import AdapterSettings, MaskSettings
from masm.adapters.shares import restored_subspace, shares
from masm.adapters.subspace import SubspaceLinear

__all__ = [
    "AdapterSettings",
    "LayerMask",
    "MaskSettings",
    "SubspaceLinear",
    "adapt",
    "adapted_layers",
    "merge",
    "penalty",
    "restored_subspace",
    "shares",
]
