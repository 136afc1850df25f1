"""The layouts that `masm data import` reads, by name."""

from __future__ import annotations

from masm.data.importers import celebdf, deepfakebench, dfdc, ffpp, imagefolder, pathlist, videos
from masm.data.importers.layout import Layout

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        deepfakebench.LAYOUT,
        ffpp.LAYOUT,
        ffpp.DFD_LAYOUT,
        celebdf.LAYOUT,
        dfdc.LAYOUT,
        imagefolder.LAYOUT,
        pathlist.LAYOUT,
        videos.LAYOUT,
    )
}
