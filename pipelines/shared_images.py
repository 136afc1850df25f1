"""Decoded images that all workers and trials of a node share.

Ray Data reads them from the Parquet shards and decodes them, once, into Ray's object store; what reads them there
sees the memory itself, and no copy. A node that did not decode a block fetches it from another's store, once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayTaskError

from masm.console import STDERR
from masm.data.decoded import DecodedImages, block_of
from masm.data.frames import Frames
from masm.data.stored import Images, decode, pick, sample_ids
from masm.errors import UserError

BLOCK_BYTES = 32 * 2**20
"""Of decoded images in a block: large enough that a task is worth its start, small enough to share the work out."""
STORE_SHARE = 0.5
"""Of a node's object store that the images may take: Ray Data needs room beside them, and so do the models."""


def share(parts: Sequence[Frames], fetch: Callable[[], None]) -> list[Frames]:
    """The same frames, with images in the object stores; as they are where these are too small, which is said.

    To be called once, with all that is needed at a time, and before workers take the CPUs, for which Ray Data would
    wait in vain. The frames can be sent to any node; the images stay until the calling process ends or lets them go.
    Images that are not shared are read from the tables, which must be fetched to each node (see `shared`).

    Args:
        parts: frames, each of images of one square size.
        fetch: brings the tables to the node where it is called.

    Raises:
        UserError: an image is damaged, or of another size.
    """
    sizes = [3 * decode(pick(part.images, np.arange(1))).shape[-1] ** 2 for part in parts]
    need = sum(size * len(part) for size, part in zip(sizes, parts, strict=True))
    if need > (room := STORE_SHARE * least_store()):
        STDERR.print(
            f"{sum(map(len, parts))} decoded images would take {need / 1e9:.3g} GB, and Ray's object stores have room "
            f"for {room / 1e9:.3g} GB of them: every worker reads and decodes its own."
        )
        return list(parts)
    return [_share(part, max(1, BLOCK_BYTES // size), fetch) for part, size in zip(parts, sizes, strict=True)]


def _share(frames: Frames, rows: int, fetch: Callable[[], None]) -> Frames:
    """The frames with images in blocks of so many rows in the object stores."""
    blocks = _decode_into_store(frames.images, rows, fetch)
    return replace(frames, images=DecodedImages(partial(ray.get, blocks), np.arange(len(frames))))


def shared(frames: Frames) -> bool:
    """Whether the images lie in the object stores, so that no node needs the tables."""
    return isinstance(frames.images, DecodedImages)


def least_store() -> float:
    """Bytes of the smallest object store of the connected cluster's nodes; each may have to hold all images."""
    return min(node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"])


def _decode_into_store(images: Images, rows: int, fetch: Callable[[], None]) -> list[ray.ObjectRef]:
    """References to blocks of so many rows each, in order."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come back as such
    kept = [ray.put(images)]  # in a list it reaches the tasks as a reference
    numbers = ray.data.range(len(images), override_num_blocks=-(-len(images) // rows))
    numbers.context.execution_options.preserve_order = True
    numbers.context.enable_progress_bars = sys.stderr.isatty()
    numbers.context.raise_original_map_exception = True
    blocks = numbers.map_batches(
        _decode_block, batch_size=None, fn_kwargs={"kept": kept, "fetch": fetch}, zero_copy_batch=True
    )
    try:
        return blocks.materialize().to_arrow_refs()
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _decode_block(
    numbers: dict[str, np.ndarray], kept: Sequence[ray.ObjectRef], fetch: Callable[[], None]
) -> pa.Table:
    fetch()
    images: Images = ray.get(kept[0])
    rows = numbers["id"]
    pixels = decode(pick(images, np.concatenate([[0], rows])))[1:]  # the first again: all blocks have its size
    return block_of(pixels, sample_ids(images, rows))
