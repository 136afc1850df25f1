"""Extraction of the faces of a video against the least it must do: PyAV's decode of its frames, and YuNet.

The video has 300 frames of 1280 x 720 with a person who moves, in x264's own settings, as those of the field have;
32 frames are taken. The limit decodes in one go from the first frame to the last that is taken, turns these into
RGB and has YuNet look at them. It knows their numbers and when they are shown; it follows, chooses and cuts out
nothing. Both decode with one thread, and run in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from masm.data.extract import extract
from masm.data.faces import YuNetDetector, make_profile
from masm.data.images import decode_image
from masm.data.video import spread
from tests.benchmarks.output import Figures
from tests.data.videos import scene, write_video

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = SHARED / "models" / "face_detection_yunet_2023mar.onnx"
COUNT, TAKEN, ROUNDS = 300, 32, 7


def figures() -> Figures:
    """`ingest.of_decode_detect`, of the minima and of the medians, and videos per second; none without ../shared."""
    if not WEIGHTS.is_file():
        return {}
    profile = make_profile("yunet", 224, 1.3, WEIGHTS, frames=TAKEN)
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video.mp4", _person())
        limit = _Limit(path)
        seconds: dict[str, list[float]] = {"limit": [], "extract": []}
        for _ in range(ROUNDS + 1):
            seconds["limit"].append(_timed(limit))
            seconds["extract"].append(_timed(lambda: extract([path], [], profile, WEIGHTS)))
    measured = {name: values[1:] for name, values in seconds.items()}  # the first round warms up
    return {
        "ingest.of_decode_detect": min(measured["limit"]) / min(measured["extract"]),
        "ingest.of_decode_detect_median": statistics.median(measured["limit"])
        / statistics.median(measured["extract"]),
        "ingest.videos_per_s": 1 / statistics.median(measured["extract"]),
    }


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
