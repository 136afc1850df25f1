"""Multi-artifact subspaces for any timm vision transformer: pure torch, no files and no services.

`adapt(model, settings)` puts the subspaces in, `LayerMask` decides which of them may move,
`penalties` gives orthogonality and spectral consistency, and `merge(model)` returns a plain
timm model again. The method is MASM (arXiv 2601.01041, renamed FMSD in its v3); its authors have
published no code, so whatever a docstring calls "ours" is our reconstruction.
"""

from __future__ import annotations

from masm.adapters.layer_mask import LayerMask
from masm.adapters.placement import adapt, adapted_layers, merge
from masm.adapters.regularizers import Penalties, penalties
from masm.adapters.settings import AdapterSettings, MaskSettings
from masm.adapters.subspace import SubspaceLinear

__all__ = [
    "AdapterSettings",
    "LayerMask",
    "MaskSettings",
    "Penalties",
    "SubspaceLinear",
    "adapt",
    "adapted_layers",
    "merge",
    "penalties",
]
