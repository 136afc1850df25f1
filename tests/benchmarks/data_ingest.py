"""Ingest of a video against the least it must do: PyAV's decode of its frames, and YuNet.

The video has 300 frames of 1280 x 720 with a person who moves, in x264's own settings, as those of the field have;
32 frames are taken. The limit decodes in one go from the first frame to the last that is taken, turns these into
RGB and has YuNet look at them. It knows their numbers and when they are shown; it follows, chooses and cuts out
nothing. Ingest is an imported clip's whole task, to the part of the face table on disk: PNG, hashes and Parquet too;
extraction ends at the crops. All decode with one thread, and run in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import typer

from masm.data.extract import extract
from masm.data.faces import YuNetDetector, make_profile
from masm.data.images import decode_image
from masm.data.imported import Task
from masm.data.index import Clip, IndexedClip, stamp_of
from masm.data.ingest import write_part
from masm.data.video import spread
from tests.benchmarks.output import Figures, show
from tests.data.videos import scene, write_video

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = SHARED / "models" / "face_detection_yunet_2023mar.onnx"
COUNT, TAKEN, ROUNDS = 300, 32, 7


def figures() -> Figures:
    """`ingest.of_decode_detect`, `extract.of_decode_detect`: the limit's time over theirs. None without ../shared."""
    if not WEIGHTS.is_file():
        return {}
    profile = make_profile("yunet", 224, 1.3, WEIGHTS, frames=TAKEN)
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video.mp4", _person())
        task = Task("bench", "test", _indexed(path), profile, WEIGHTS)
        ways: dict[str, Callable[[], object]] = {
            "limit": _Limit(path),
            "extract": lambda: extract([path], [], profile, WEIGHTS),
            "ingest": lambda: write_part(Path(folder) / "part.parquet", task.run()),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS + 1):
            for name, way in ways.items():
                times[name].append(_timed(way))
    least = {name: min(own[1:]) for name, own in times.items()}  # the first round warms up
    middle = {name: statistics.median(own[1:]) for name, own in times.items()}
    return {
        "ingest.of_decode_detect": least["limit"] / least["ingest"],
        "ingest.of_decode_detect_median": middle["limit"] / middle["ingest"],
        "ingest.videos_per_s": 1 / middle["ingest"],
        "extract.of_decode_detect": least["limit"] / least["extract"],
        "extract.of_decode_detect_median": middle["limit"] / middle["extract"],
    }


def _indexed(path: Path) -> IndexedClip:
    clip = Clip("000", "test", 0, "real", "real", None, "000", (), "unknown", (path,))
    return IndexedClip(clip, (stamp_of(path),))


class _Limit:
    """Decode and detect, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path, self.detector = path, YuNetDetector(WEIGHTS)

    def __call__(self) -> None:
        wanted = set(spread(COUNT, TAKEN))
        with av.open(str(self.path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    assert len(self.detector.detect(frame.to_ndarray(format="rgb24"))) == 1
                if number == max(wanted):
                    return


def _person() -> Iterator[np.ndarray]:
    file = min((SHARED / "faces" / "london").glob("*_03.jpg"))
    picture = cv2.resize(decode_image(file.read_bytes()), (640, 640), interpolation=cv2.INTER_AREA)
    for number in range(COUNT):
        yield scene({(320 + int(200 * np.sin(number / 40)), 40): picture}, height=720, width=1280)


def _timed(call: Callable[[], object]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def main(as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False) -> None:
    """Measure ingest."""
    show(f"Ingest of a video, {TAKEN} of {COUNT} frames", figures(), as_json)


if __name__ == "__main__":
    typer.run(main)
