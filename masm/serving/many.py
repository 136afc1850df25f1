"""Many images and videos: threads find the faces of the next ones, while the detector sees full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from masm.data.images import ImageError
from masm.serving.results import ImageResult, VideoResult
from masm.serving.scorer import BATCH_SIZE, FoundFace, FoundFrame, Scorer

AHEAD = 16
"""Images and videos whose faces wait for the detector; a video's are about 5 MB."""

Result = ImageResult | VideoResult


@dataclass(frozen=True)
class ImageTask:
    """An image that is to be scored; `find` gives its faces, or raises ImageError with its outcome."""

    find: Callable[[], Sequence[FoundFace]]


@dataclass(frozen=True)
class VideoTask:
    """A video that is to be scored; `find` gives its face in its frames, or raises ImageError with its outcome."""

    find: Callable[[], Sequence[FoundFrame]]


Task = ImageTask | VideoTask
_Prepared = tuple[Task, Sequence[FoundFace] | Sequence[FoundFrame] | ImageError]


def score_many(scorer: Scorer, tasks: Iterable[Task], shares: bool = False) -> Iterator[Result]:
    """The result of each image and video, in their order; with subspace shares if asked for."""
    with ThreadPoolExecutor() as pool:
        group: list[_Prepared] = []
        for prepared in _ahead(pool, tasks):
            group.append(prepared)
            if len(group) >= BATCH_SIZE or sum(len(_found(each)) for each in group) >= BATCH_SIZE:
                yield from _judge(scorer, group, shares)
                group = []
        yield from _judge(scorer, group, shares)


def _ahead(pool: ThreadPoolExecutor, tasks: Iterable[Task]) -> Iterator[_Prepared]:
    waiting: deque[Future[_Prepared]] = deque()
    for task in tasks:
        waiting.append(pool.submit(_prepare, task))
        if len(waiting) >= AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _prepare(task: Task) -> _Prepared:
    try:
        return task, task.find()
    except ImageError as error:
        return task, error


def _found(prepared: _Prepared) -> Sequence[FoundFace] | Sequence[FoundFrame]:
    return () if isinstance(prepared[1], ImageError) else prepared[1]


def _judge(scorer: Scorer, group: Sequence[_Prepared], shares: bool) -> Iterator[Result]:
    """The results of some images and videos, whose crops are one batch."""
    outputs = scorer.outputs([each.crop for prepared in group for each in _found(prepared)], shares)
    end = 0
    for task, found in group:
        if isinstance(found, ImageError):
            yield ImageResult(str(found)) if isinstance(task, ImageTask) else VideoResult(str(found))
            continue
        start, end = end, end + len(found)
        judge = scorer.judge_image if isinstance(task, ImageTask) else scorer.judge_video
        yield judge(found, outputs.of(slice(start, end)))
