"""Many images and videos: threads find the faces of the next ones, while the detector sees full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from masm.data.images import ImageError
from masm.errors import UserError
from masm.serving.results import ImageResult, VideoResult
from masm.serving.scorer import BATCH_SIZE, FoundFace, FoundFrame, Outputs, Scorer

AHEAD = 16
"""Images and videos whose faces wait for the detector; a video's are about 5 MB."""

Result = ImageResult | VideoResult


@dataclass(frozen=True)
class Prepared:
    """Crops that wait for the detector, and how its outputs for them become a result."""

    crops: list[np.ndarray]
    judge: Callable[[Outputs], Result]


Task = Callable[[], Prepared]
"""One image or video, whose faces are found when it is called."""


def image_task(scorer: Scorer, find: Callable[[], Sequence[FoundFace]]) -> Task:
    """An image; `find` gives its faces, or raises ImageError with its outcome."""

    def prepare() -> Prepared:
        try:
            faces = find()
        except ImageError as error:
            return _failed(ImageResult(str(error)))
        return Prepared([face.crop for face in faces], partial(scorer.judge_image, faces))

    return prepare


def video_task(scorer: Scorer, find: Callable[[], Sequence[FoundFrame]]) -> Task:
    """A video; `find` gives its face in its frames, or raises ImageError or, without PyAV, UserError: its outcome."""

    def prepare() -> Prepared:
        try:
            frames = find()
        except (ImageError, UserError) as error:
            return _failed(VideoResult(str(error)))
        return Prepared([frame.crop for frame in frames], partial(scorer.judge_video, frames))

    return prepare


def _failed(result: Result) -> Prepared:
    return Prepared([], lambda _: result)


def score_many(
    scorer: Scorer, tasks: Iterable[Task], shares: bool = False, embeddings: bool = False
) -> Iterator[Result]:
    """The result of each image and video, in their order; with subspace shares and embeddings if asked for."""
    with ThreadPoolExecutor() as pool:
        group: list[Prepared] = []
        for prepared in _ahead(pool, tasks):
            group.append(prepared)
            if len(group) >= BATCH_SIZE or sum(len(each.crops) for each in group) >= BATCH_SIZE:
                yield from _judge(scorer, group, shares, embeddings)
                group = []
        yield from _judge(scorer, group, shares, embeddings)


def _ahead(pool: ThreadPoolExecutor, tasks: Iterable[Task]) -> Iterator[Prepared]:
    waiting: deque[Future[Prepared]] = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _judge(scorer: Scorer, group: Sequence[Prepared], shares: bool, embeddings: bool) -> Iterator[Result]:
    """The results of some images and videos, whose crops are one batch."""
    outputs = scorer.outputs([crop for each in group for crop in each.crops], shares, embeddings)
    end = 0
    for each in group:
        start, end = end, end + len(each.crops)
        yield each.judge(outputs.of(slice(start, end)))
