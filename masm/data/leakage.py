"""What face tables share that must be kept apart: people, recordings, videos, image bytes, and images that look alike.

A place is a role and a split, as in "train/val". People and recordings go by their names; of the tables only the
columns that a check needs are read, one table at a time, and only distinct names are kept of them.

Frames of one video look alike by nature, and so do those of one recording in two datasets. So near-duplicates count
only between places, or between datasets of one place that name different recordings; and only where at least half
of a video's frames look like one recording elsewhere, since single frames of two people do so by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from masm.data.duplicates import Nearest, near_pairs
from masm.data.table import read_table
from masm.settings import Settings

Progress = Callable[[int, int], None]
HEX = {"sha256": "^[0-9a-f]{64}$", "phash": "^[0-9a-f]{16}$"}
"""What hashes look like."""


def shared_names(settings: Settings) -> dict[str, list[str]]:
    """Check "person", "recording" and "video" -> a sentence for each that is in more than one place."""
    kinds = {
        "person": (["identity", "source_clip"], _people),
        "recording": (["source_clip", "sources"], _recordings),
        "video": (["dataset", "method", "video_id"], _videos),
    }
    return {check: _in_several_places(settings, columns, names) for check, (columns, names) in kinds.items()}


def _people(rows: pa.Table) -> list[tuple[pa.Array, pa.Array]]:
    """Where nobody says who it is, the recording stands for the person: that is for the check of recordings."""
    named = pc.and_kleene(pc.not_equal(rows["identity"], rows["source_clip"]), pc.not_equal(rows["identity"], ""))
    known = rows.filter(named)
    return [(known["identity"], known["split"])]


def _recordings(rows: pa.Table) -> list[tuple[pa.Array, pa.Array]]:
    """What a frame shows, and what it was made from."""
    lists = rows["sources"].combine_chunks()
    made_from = rows["split"].take(pc.list_parent_indices(lists))
    return [(rows["source_clip"], rows["split"]), (pc.list_flatten(lists), made_from)]


def _videos(rows: pa.Table) -> list[tuple[pa.Array, pa.Array]]:
    return [(_video_names(rows), rows["split"])]


def _video_names(rows: pa.Table) -> pa.Array:
    return pc.binary_join_element_wise(rows["dataset"], rows["method"], rows["video_id"], "/")


def _in_several_places(
    settings: Settings, columns: list[str], names: Callable[[pa.Table], list[tuple[pa.Array, pa.Array]]]
) -> list[str]:
    """A sentence for each name that rows of more than one place have."""
    parts = []
    for dataset, entry in settings.datasets.items():
        for name, split in names(read_table(settings.table(dataset), ["split", *columns])):
            distinct = pa.table({"name": name, "split": split}).group_by(["name", "split"]).aggregate([])
            part = distinct.to_pandas().dropna()
            parts.append(part.assign(place=entry.role + "/" + part["split"], dataset=dataset))
    found = pd.concat(parts, ignore_index=True)
    places = found.groupby("name")["place"].nunique()
    found = found[found["name"].isin(places.index[places > 1])]
    return [f"{name} is in {_where(rows)}" for name, rows in found.groupby("name")]


def _where(rows: pd.DataFrame) -> str:
    """The places, and the datasets in each."""
    places = rows.groupby("place")["dataset"].unique()
    return " and ".join(f"{place} ({', '.join(sorted(datasets))})" for place, datasets in places.items())


@dataclass(frozen=True)
class Frames:
    """All frames of all tables by numbers, (N,) each.

    Attributes:
        place, dataset, recording, video: indices into `names`.
        digest: first 64 bits of the image's SHA-256.
        phash: perceptual hash.
        names: what the indices mean, by attribute.
    """

    place: np.ndarray
    dataset: np.ndarray
    recording: np.ndarray
    video: np.ndarray
    digest: np.ndarray
    phash: np.ndarray
    names: dict[str, list[str]]

    def describe(self, frame: int) -> str:
        """The recording that a frame shows, its dataset and place."""
        recording, dataset, place = (
            self.names[kind][getattr(self, kind)[frame]] for kind in ("recording", "dataset", "place")
        )
        return f"{recording} ({dataset}, {place})"


def read_frames(settings: Settings) -> Frames:
    """The frames of all face tables; those with a damaged hash or an empty column are for the check of the table."""
    columns = ["split", "dataset", "method", "video_id", "source_clip", "sha256", "phash"]
    tables, digests, hashes = [], [], []
    for dataset, entry in settings.datasets.items():
        rows = read_table(settings.table(dataset), columns).drop_null()
        sound = [pc.match_substring_regex(rows[name], pattern) for name, pattern in HEX.items()]
        rows = rows.filter(pc.and_kleene(*sound))
        named = {
            "place": pc.binary_join_element_wise(entry.role, rows["split"], "/"),
            "dataset": rows["dataset"],
            "recording": rows["source_clip"],
            "video": _video_names(rows),
        }
        tables.append(pa.table({name: pc.dictionary_encode(column) for name, column in named.items()}))
        digests.append(hash_bits(pc.utf8_slice_codeunits(rows["sha256"], 0, 16).to_pylist()))
        hashes.append(hash_bits(rows["phash"].to_pylist()))
    coded = pa.concat_tables(tables).unify_dictionaries()
    arrays = {name: coded[name].combine_chunks() for name in coded.column_names}
    return Frames(
        **{name: array.indices.to_numpy(zero_copy_only=False) for name, array in arrays.items()},
        digest=np.concatenate(digests),
        phash=np.concatenate(hashes),
        names={name: array.dictionary.to_pylist() for name, array in arrays.items()},
    )


def hash_bits(digits: Sequence[str]) -> np.ndarray:
    """(N,) uint64 of N times 16 hex digits."""
    return np.frombuffer(bytes.fromhex("".join(digits)), ">u8").astype(np.uint64)


def same_images(frames: Frames) -> list[str]:
    """A sentence for each two recordings that share image bytes; an image counts for one recording of each place."""
    order = np.lexsort((frames.place, frames.digest))
    digest, place = frames.digest[order], frames.place[order]
    # Sorted by place, equal images that are in two places have them side by side at least once.
    leaks = np.flatnonzero((digest[:-1] == digest[1:]) & (place[:-1] != place[1:]))
    pairs = Counter(
        tuple(sorted((frames.describe(one), frames.describe(other))))
        for one, other in zip(order[leaks], order[leaks + 1], strict=True)
    )
    return [f"{first} and {second} have {count} images byte for byte" for (first, second), count in pairs.items()]


def look_alikes(frames: Frames, radius: int, progress: Progress) -> dict[str, list[str]]:
    """Check "near_duplicate" (between places) and "repetition" (within one) -> a sentence for each pair of recordings.

    Args:
        frames: of all tables.
        radius: the most bits in which the perceptual hashes of images that look alike differ.
        progress: called with rounds of the search done, and rounds in all.
    """
    table = pd.DataFrame({"phash": frames.phash, "dataset": frames.dataset, "place": frames.place})
    # One frame stands for all that a dataset's split has of its hash: blank images are no flood of pairs.
    group = table.groupby(["phash", "dataset", "place"]).ngroup().to_numpy()
    _, chosen = np.unique(group, return_index=True)
    place, dataset, recording = frames.place[chosen], frames.dataset[chosen], frames.recording[chosen]
    found = {"near_duplicate": Nearest(len(chosen)), "repetition": Nearest(len(chosen))}
    for pairs in near_pairs(frames.phash[chosen], radius, progress):
        apart, others, unlike = (codes[pairs.first] != codes[pairs.second] for codes in (place, dataset, recording))
        found["near_duplicate"].add(pairs, apart)
        found["repetition"].add(pairs, ~apart & others & unlike)
    return {
        check: _alike(frames, np.where(nearest.index < 0, -1, chosen[nearest.index])[group], radius)
        for check, nearest in found.items()
    }


def _alike(frames: Frames, nearest: np.ndarray, radius: int) -> list[str]:
    """The recordings of which a video has at least half of its frames near one recording elsewhere.

    Args:
        frames: N of them.
        nearest: (N,) for each frame the one elsewhere that it looks most like, or -1.
        radius: for the sentence.
    """
    here = np.flatnonzero(nearest >= 0)
    there = nearest[here]
    votes = pd.DataFrame(
        {
            **{name: getattr(frames, name)[here] for name in ("place", "video")},
            **{f"other_{name}": getattr(frames, name)[there] for name in ("place", "recording")},
            "here": here,
            "there": there,
        }
    )
    video = ["place", "video"]
    # Datasets of one place may have the same recording: their votes count together, and the first one is named.
    counts = votes.groupby([*video, "other_place", "other_recording"]).agg(
        frames=("here", "size"), here=("here", "first"), there=("there", "first")
    )
    sizes = pd.DataFrame({name: getattr(frames, name) for name in video}).value_counts().rename("whole")
    judged = counts.reset_index().merge(sizes.reset_index(), on=video)
    chosen = judged[2 * judged["frames"] >= judged["whole"]]
    pairs = {
        tuple(sorted((frames.describe(one), frames.describe(other))))
        for one, other in zip(chosen["here"], chosen["there"], strict=True)
    }
    return [f"{one} and {other} look alike (perceptual hashes within {radius} bits)" for one, other in sorted(pairs)]
