"""Where a backbone's weights come from: the starter that ships, the hub, or a file of timm's or FSFM's making.

A backbone is a plain timm vision transformer without a classification head. `checkpoint` reads files without
running code from them, `layout` knows whose file it is and what follows from that for pooling, normalisation and
class order, `loading` makes the model. `inspection` and `conversion` are the commands beside it.
"""

from __future__ import annotations

from masm.backbones.loading import STARTER, Backbone, build_backbone, load_backbone, load_folder, state_differences

__all__ = ["STARTER", "Backbone", "build_backbone", "load_backbone", "load_folder", "state_differences"]
