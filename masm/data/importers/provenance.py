"""Clips as the names of the public datasets describe them: who is seen, and which recordings they were made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from masm.data.index import Clip

FAMILIES = {
    "DF": "face swap",
    "FS": "face swap",
    "FSh": "face swap",
    "DFD": "face swap",
    "Celeb-synthesis": "face swap",
    "F2F": "reenactment",
    "NT": "reenactment",
    "real": "real",
}
"""Kinds of the forgeries whose kind is known by their name."""

SAME_RECORDING = {
    "606": "605", "640": "639", "756": "755", "838": "837", "876": "875", "955": "954", "983": "982",
}  # fmt: skip
"""Clips of FaceForensics++ that were cut from the recording of another one and stand in another official split.

The split leaks through them: 755/756 and 954/955 between train and test, the others between train and val.
"""


@dataclass(frozen=True)
class Provenance:
    """As in `masm.data.index.Clip`."""

    identity: str | None
    source_clip: str
    sources: tuple[str, ...]


def names_reals(name: str) -> bool:
    """Whether the name of a folder, source or label key ends in the word real: "FF-real", but not "RealVisXL"."""
    return re.search(r"(^|[-_ ])real$", name, re.IGNORECASE) is not None


def provenance(origin: str, video: str, method: str) -> Provenance:
    """What a video's name says; where it says nothing, its source clip is itself, even if a real has its name.

    Args:
        origin: "FF++", "Celeb-DF", "DFD", or any other, whose names say nothing.
        video: its name without suffix.
        method: the forgery; "real" for reals.
    """
    if origin == "FF++" and re.fullmatch(r"\d{3}(_\d{3})?", video):
        recordings = tuple(f"FF++:{SAME_RECORDING.get(clip, clip)}" for clip in video.split("_"))
        return Provenance(None, recordings[0], recordings)
    if origin == "Celeb-DF" and (match := re.fullmatch(r"(id\d+)(?:_id\d+)?_(\d+)", video)):
        clip = f"Celeb-DF:{match[1]}_{match[2]}"
        return Provenance(f"Celeb-DF:{match[1]}", clip, (clip,))
    if origin == "DFD" and (match := re.fullmatch(r"(\d+)_\d+__(.+)__\w+", video)):
        clip = f"DFD:{match[1]}__{match[2]}"
        return Provenance(f"DFD:{match[1]}", clip, (clip,))
    if origin == "DFD" and (match := re.fullmatch(r"(\d+)__.+", video)):
        return Provenance(f"DFD:{match[1]}", f"DFD:{video}", (f"DFD:{video}",))
    if method == "real":
        return Provenance(None, f"{origin}:{video}", (f"{origin}:{video}",))
    return Provenance(None, f"{origin}:{method}/{video}", ())


def named_clip(
    origin: str,
    video: str,
    method: str,
    split: str,
    files: tuple[Path, ...],
    *,
    compression: str = "unknown",
    masks: tuple[Path, ...] = (),
    attributes: tuple[tuple[str, str], ...] = (),
) -> Clip:
    """The clip of a video whose name, with its origin and method, says the rest; as in `provenance` and `Clip`."""
    known = provenance(origin, video, method)
    return Clip(
        video_id=video,
        split=split,
        label=int(method != "real"),
        method=method,
        family=FAMILIES.get(method, "unknown"),
        identity=known.identity,
        source_clip=known.source_clip,
        sources=known.sources,
        compression=compression,
        files=files,
        masks=masks,
        attributes=attributes,
    )
