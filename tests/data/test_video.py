"""Frames by number against the brute force: decode everything, and count."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from masm.data.images import ImageError
from masm.data.importers.photograph import Unusable
from masm.data.video import Pictures, Video, open_frames, spread
from masm.errors import UserError
from tests.data.videos import decode_all, number_in, numbered, turn_by_metadata, write_video

COUNT = 90
UNEVEN = np.cumsum(np.random.default_rng(0).integers(8, 130, COUNT)).tolist()
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "one key frame": ("a.mp4", {}),
    "many key frames": ("b.mp4", {"g": "12"}),
    "open groups": ("c.mp4", {"g": "12", "x264-params": "open-gop=1:bframes=3"}),
    "variable frame rate": ("d.mp4", {"times": UNEVEN, "g": "20"}),
    "fragmented": ("e.mp4", {"fragmented": True, "g": "20"}),
    "hevc": ("f.mp4", {"codec": "libx265", "x265-params": "log-level=none:keyint=25"}),
    "quicktime": ("g.mov", {"codec": "mjpeg"}),
    "matroska": ("h.mkv", {"g": "20"}),
    "webm": ("i.webm", {"codec": "libvpx-vp9", "g": "30", "deadline": "realtime", "cpu-used": "8"}),
    "avi": ("j.avi", {"codec": "mpeg4"}),
    "avi with frames out of order": ("k.avi", {"codec": "mpeg4", "bf": "2"}),
    "avi of h264": ("m.avi", {}),
    "transport stream": ("l.ts", {"g": "20"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_frames_by_number_are_those_of_decoding_everything(tmp_path: Path, kind: str) -> None:
    name, options = FILES[kind]
    path = write_video(tmp_path / name, numbered(COUNT), **options)
    everything = decode_all(path)
    video = Video(path)
    assert len(video.numbers) == len(everything) == COUNT
    for numbers in ([0, 1, 7, 19, 20, 21, 45, 62, 88, 89], [63], [12, 89]):
        found = list(video.read(numbers))
        assert [number for number, _ in found] == numbers
        for number, image in found:
            assert isinstance(image, np.ndarray), image
            np.testing.assert_array_equal(image, everything[number])
            assert number_in(image) == number
    times = np.subtract(options.get("times", np.arange(COUNT) * 40), options.get("times", [0])[0]) / 1000
    np.testing.assert_allclose([video.seconds(number) for number in video.numbers], times, atol=2e-3)
    video.close()


class Counting(Video):
    """Counts what is decoded."""

    decoded = 0

    def _decode(self) -> Iterator[Any]:
        for frame in super()._decode():
            self.decoded += 1
            yield frame


def test_seeks_rather_than_decode_what_is_not_wanted(tmp_path: Path) -> None:
    video = Counting(write_video(tmp_path / "a.mp4", numbered(200), g="10", bf="0"))
    chosen = spread(200, 4)
    assert [number_in(image) for _, image in video.read(chosen) if isinstance(image, np.ndarray)] == chosen
    assert video.decoded <= sum(number % 10 + 1 for number in chosen)


class TestSpread:
    @pytest.mark.parametrize(("length", "count"), [(300, 32), (33, 32), (1000, 8), (7, 3), (5, 1)])
    def test_one_from_the_middle_of_each_equal_part(self, length: int, count: int) -> None:
        """Not the first frames of the video (defect 2 of the reference benchmark)."""
        places = np.array(spread(length, count))
        middles = (np.arange(count) + 0.5) * length / count
        assert (np.abs(places + 0.5 - middles) <= 0.5 + 1e-9).all()
        assert len(set(places)) == count

    def test_all_where_there_are_fewer(self) -> None:
        assert spread(5, 8) == spread(5, None) == [0, 1, 2, 3, 4]


class TestRotation:
    def test_pictures_are_upright(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", numbered(3))
        turned = Video(turn_by_metadata(path, tmp_path / "turned.mp4"))
        for number, image in turned.read([0, 2]):
            np.testing.assert_array_equal(image, np.rot90(decode_all(path)[number], -1))  # clockwise

    @pytest.mark.parametrize("degrees", [90, 180, 270])
    def test_every_quarter_turn(self, tmp_path: Path, degrees: int) -> None:
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width = 96, 160
            stream.set_display_rotation(degrees)
            for image in numbered(2):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(stream.encode(None))
        (_, found), *_ = Video(path).read([1])
        assert isinstance(found, np.ndarray)
        plain = decode_all(path)[1]
        assert any(
            np.array_equal(found, np.rot90(plain, turns)) for turns in {90: [1, 3], 180: [2], 270: [1, 3]}[degrees]
        )


class TestDamage:
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
    def test_what_is_left_of_a_cut_file_is_read_and_the_rest_named(self, tmp_path: Path, share: float) -> None:
        path = write_video(tmp_path / "a.mp4", numbered(COUNT), faststart=True, g="20")
        whole = decode_all(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        video = Video(path)
        assert len(video.numbers) == COUNT
        found = dict(video.read(range(COUNT)))
        good = [number for number, image in found.items() if isinstance(image, np.ndarray)]
        assert 0.5 * share * COUNT < len(good) < COUNT
        for number in good:
            np.testing.assert_array_equal(found[number], whole[number])
        assert "cut off" in str(found[COUNT - 1])

    @pytest.mark.parametrize("name", ["a.mkv", "a.ts"])
    def test_a_cut_file_without_a_table_ends_early(self, tmp_path: Path, name: str) -> None:
        path = write_video(tmp_path / name, numbered(COUNT), g="20")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        video = Video(path)
        assert 0.3 * COUNT < len(video.numbers) < 0.7 * COUNT
        found = dict(video.read([3, 25]))
        assert {number: number_in(image) for number, image in found.items() if isinstance(image, np.ndarray)} == {
            3: 3,
            25: 25,
        }

    @pytest.mark.parametrize("seed", range(4))
    def test_no_frame_is_shown_for_another(self, tmp_path: Path, seed: int) -> None:
        """A decoder hides damage under its neighbours: what follows a damaged frame is not taken (defect 5)."""
        path = write_video(tmp_path / "a.mp4", numbered(COUNT), faststart=True, g="30")
        data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
        start = int(rng.uniform(0.3, 0.6) * len(data))
        data[start : start + 2000] = rng.bytes(2000)
        path.write_bytes(data)
        found = dict(Video(path).read(range(COUNT)))
        good = {number: image for number, image in found.items() if isinstance(image, np.ndarray)}
        assert all(number_in(image) == number for number, image in good.items())
        assert COUNT / 4 < len(good) < COUNT
        assert all("damaged" in str(image) for image in found.values() if isinstance(image, ImageError))

    @pytest.mark.parametrize(
        ("codec", "reordered"), [("mpeg4", "0"), ("mpeg4", "2"), ("mjpeg", "0"), ("libx264", "2")]
    )
    def test_frames_that_are_counted_have_no_number_after_a_lost_one(
        self, tmp_path: Path, codec: str, reordered: str
    ) -> None:
        """An AVI does not say when a frame is shown: a key frame after the gap is no new beginning."""
        path = write_video(tmp_path / "a.avi", numbered(COUNT), codec=codec, g="10", bf=reordered)
        with av.open(str(path)) as container:
            places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        data, (start, size) = bytearray(path.read_bytes()), places[25]
        data[start : start + size] = bytes(size)
        path.write_bytes(data)
        found = dict(Video(path).read(range(COUNT)))
        good = {number: image for number, image in found.items() if isinstance(image, np.ndarray)}
        assert all(number_in(image) == number for number, image in good.items())
        assert 20 <= len(good) < COUNT

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "empty file"),
            (b"<html>not found</html>" * 50, "cannot be opened as a video"),
            (None, "cannot be opened"),
        ],
    )
    def test_files_that_are_no_video(self, tmp_path: Path, content: bytes | None, reason: str) -> None:
        path = tmp_path / "a.mp4"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(Unusable) as caught:
            Video(path)
        assert caught.value.outcome == "unreadable"
        assert reason in caught.value.reason

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
    def test_whatever_the_damage_there_is_a_reason_or_a_frame(self, tmp_path: Path, name: str) -> None:
        path = write_video(tmp_path / name, numbered(12), codec="mpeg4" if name == "a.avi" else "libx264")
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        frames = 0
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                video = Video(path)
            except Unusable:
                continue
            found = list(video.read(video.numbers[:50]))
            frames += sum(isinstance(image, np.ndarray) for _, image in found)
            video.close()
        assert frames > 0

    def test_the_table_at_the_end_is_gone(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", numbered(20))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(Unusable, match="cannot be opened as a video"):
            Video(path)

    def test_sound_alone(self, tmp_path: Path) -> None:
        with av.open(str(tmp_path / "a.mov"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
        with pytest.raises(Unusable, match="no video in the file"):
            Video(tmp_path / "a.mov")

    def test_without_pyav_videos_are_refused_and_pictures_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_video(tmp_path / "a.mp4", numbered(2))
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(UserError, match=r"masm\[video\]"):
            open_frames([path])
        assert list(open_frames([]).numbers) == []


class TestLimits:
    def test_larger_frames_are_refused_by_the_header(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "a.mp4", numbered(3))
        assert [type(image) for _, image in Video(path, 96 * 160).read([0, 1, 2])] == [np.ndarray] * 3
        with pytest.raises(Unusable, match=f"decompression bomb: more than {96 * 160 - 1} pixels"):
            Video(path, 96 * 160 - 1)

    def test_frames_that_grow_later_are_not_decoded(self, tmp_path: Path) -> None:
        parts = [write_video(tmp_path / f"{side}.h264", numbered(5, side, side)) for side in (96, 320)]
        path = tmp_path / "both.h264"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        shapes, limited = (
            {getattr(image, "shape", None) for _, image in video.read(range(10))}
            for video in (Video(path), Video(path, 96 * 96))
        )
        assert shapes == {(96, 96, 3), (320, 320, 3)}
        assert limited == {(96, 96, 3), None}

    @pytest.mark.parametrize("kind", ["m3u8", "ffconcat"])
    def test_a_playlist_does_not_open_the_files_that_it_names(self, tmp_path: Path, kind: str) -> None:
        write_video(tmp_path / "other.ts", numbered(5))
        texts = {
            "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n",
            "ffconcat": "ffconcat version 1.0\nfile other.ts\n",
        }
        path = tmp_path / f"upload.{kind}"
        path.write_text(texts[kind])
        assert len(decode_all(path)) == 5  # FFmpeg would, or this test could not fail
        with pytest.raises(Unusable, match="cannot be opened as a video: not of the formats mov,mp4,"):
            Video(path)


class TestPictures:
    def write(self, path: Path, grey: int) -> Path:
        cv2.imwrite(str(path), np.full((8, 8, 3), grey, np.uint8))
        return path

    def test_numbers_are_those_of_the_names(self, tmp_path: Path) -> None:
        files = [self.write(tmp_path / f"frame_{number:04d}.png", number) for number in (3, 20, 100)]
        pictures = open_frames(files)
        assert isinstance(pictures, Pictures)
        assert list(pictures.numbers) == [3, 20, 100]
        assert [(number, image[0, 0, 0]) for number, image in pictures.read([3, 100])] == [(3, 3), (100, 100)]

    @pytest.mark.parametrize("names", [("b", "a"), ("2", "1"), ("1", "x"), ("a1", "b1")])
    def test_or_their_places(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        files = [self.write(tmp_path / f"{name}.png", grey) for grey, name in enumerate(names)]
        assert [(number, image[0, 0, 0]) for number, image in Pictures(files).read([0, 1])] == [(0, 0), (1, 1)]

    def test_a_bad_file_says_why_and_leaves_the_others_alone(self, tmp_path: Path) -> None:
        files = [self.write(tmp_path / f"{number}.png", number) for number in range(4)]
        files[1].write_bytes(b"")
        files[2].unlink()
        found = dict(Pictures(files).read(range(4)))
        assert str(found[1]) == "1.png: empty file"
        assert str(found[2]) == "2.png: No such file or directory"
        assert all(isinstance(found[number], np.ndarray) for number in (0, 3))
