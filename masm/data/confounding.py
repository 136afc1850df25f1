"""Whether a dataset's reals and fakes come from different sources, so that a score measures the source.

Two signs, each decided by what the face table says of its videos: a forgery of which less than half of the videos were
made from recordings, or show people, that the reals show; and a property that no forgery should change, such as the
compression, that tells the two apart alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = [
    "label", "method", "video_id", "identity", "source_clip", "sources", "compression", "width", "height", "attributes"
]  # fmt: skip
"""Of the face table."""


def confounds(rows: pa.Table, limit: float) -> list[str]:
    """A sentence for each sign that reals and fakes come from different sources; none where there is no sign.

    Args:
        rows: of one face table, with `COLUMNS`.
        limit: balanced accuracy, over videos, at which a property alone is taken to tell reals from fakes.
    """
    videos = first_frames(rows)
    reals = videos[videos["label"] == 0]
    signs = []
    for method, fakes in videos[videos["label"] == 1].groupby("method"):
        signs += [f"{method}: {sign}" for sign in (*_origin(reals, fakes), *_properties(reals, fakes, limit))]
    return signs


def first_frames(rows: pa.Table) -> pd.DataFrame:
    """The first frame of each video, with its attributes as columns "attribute NAME" and its image's size as one."""
    numbered = rows.append_column("row", pa.array(np.arange(len(rows))))
    first = numbered.group_by(["method", "video_id"]).aggregate([("row", "min")])["row_min"]
    videos = rows.take(first.combine_chunks().sort())
    frame = videos.drop_columns(["width", "height", "attributes"]).to_pandas()
    size = pc.binary_join_element_wise(videos["width"].cast("string"), videos["height"].cast("string"), " x ")
    attributes = pd.DataFrame([dict(pairs or ()) for pairs in videos["attributes"].to_pylist()], index=frame.index)
    return frame.assign(size=size.to_pylist()).join(attributes.add_prefix("attribute "))


def _origin(reals: pd.DataFrame, fakes: pd.DataFrame) -> Iterator[str]:
    # A test list may hold other recordings of the same people (Celeb-DF): that is the same source.
    shown = {*reals["source_clip"], *reals["identity"]}
    made_from = zip(fakes["identity"], fakes["source_clip"], fakes["sources"], strict=True)
    shared = sum(not shown.isdisjoint((person, clip, *sources)) for person, clip, sources in made_from)
    if 2 * shared >= len(fakes):
        return
    if shared == 0 and all(len(sources) == 0 for sources in fakes["sources"]):
        yield f"of none of its {len(fakes)} videos is it known what it was made from"
    else:
        yield f"only {shared} of its {len(fakes)} videos show a person or recording that the reals show"


def _properties(reals: pd.DataFrame, fakes: pd.DataFrame, limit: float) -> Iterator[str]:
    names = ["compression", "size", *(name for name in map(str, reals) if name.startswith("attribute "))]
    for name in names:
        real, fake = reals[name].dropna(), fakes[name].dropna()
        # What only one class has describes how it was made, not where it came from.
        if len(real) and len(fake) and (accuracy := separability(real, fake)) >= limit:
            yield f"its {name} alone tells its videos from the reals with balanced accuracy {accuracy:.2f}"


def separability(real: pd.Series, fake: pd.Series) -> float:
    """Balanced accuracy with which a value tells its class, each video judged by all others.

    A video is given the class in which its value is the more frequent, itself left out; an even one counts half.
    Values that stand for one video each tell nothing: 0.5.
    """
    counts = pd.DataFrame({"real": real.value_counts(), "fake": fake.value_counts()}).fillna(0)
    shares = []
    for own, other in (("real", "fake"), ("fake", "real")):
        mine, total = counts[own], counts[own].sum()
        without = (mine - 1).clip(lower=0) / max(total - 1, 1)
        elsewhere = counts[other] / counts[other].sum()
        right = np.where(np.isclose(without, elsewhere), 0.5, without > elsewhere)
        shares.append(float((mine * right).sum() / total))
    return sum(shares) / 2
