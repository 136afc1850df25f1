"""Which files a request may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from masm.data.images import ImageError
from masm.serving.media import from_base64, media_file, read_media


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of media, with links out of it and within it, beside a file that must not be read."""
    (tmp_path / "secret.png").write_text("secret")
    (tmp_path / "media-of-others").mkdir()
    (tmp_path / "media-of-others" / "a.png").write_text("others'")
    root = tmp_path / "media"
    (root / "below").mkdir(parents=True)
    (root / "below" / "a.png").write_text("a")
    (root / "inside.png").symlink_to("below/a.png")
    (root / "outside.png").symlink_to("../secret.png")
    (root / "away").symlink_to("..")
    (root / "ring.png").symlink_to("ring.png")
    return root


@pytest.mark.parametrize("text", ["below/a.png", "./below//a.png", "inside.png"])
def test_a_file_below_the_folder_is_given(root: Path, text: str) -> None:
    assert media_file(text, root) == root / "below" / "a.png"
    assert media_file(str(root / text), root) == root / "below" / "a.png"


@pytest.mark.parametrize(
    "text",
    [
        "../secret.png",
        "below/../../secret.png",
        "below/../inside.png",  # inside, but whoever writes so tries something
        "outside.png",
        "away/secret.png",
        "away/media/below/a.png/../../../secret.png",
        "{root}/../secret.png",
        "{root}-of-others/a.png",
        "{root}/outside.png",
        "/etc/passwd",
        "/proc/self/environ",
        "/no/such/file",
        "file:///etc/passwd",
        "http://127.0.0.1/a.png",
        "concat:below/a.png",
        "ring.png",
        "below",
        "",
        ".",
        "a\0.png",
        "x" * 300,
        "~/a.png",
    ],
)
def test_nothing_else_is(root: Path, text: str) -> None:
    with pytest.raises(ImageError):
        media_file(text.format(root=root), root)


def test_what_lies_outside_is_not_told_from_what_does_not_exist(root: Path) -> None:
    outcomes = set()
    for text in (root.parent / "secret.png", root.parent / "missing.png", "/etc/passwd", "outside.png"):
        with pytest.raises(ImageError) as caught:
            media_file(str(text), root)
        outcomes.add(str(caught.value))
    assert outcomes == {"a path outside of the folder that files may come from"}


@pytest.mark.parametrize("text", ["below/a.png", "/etc/passwd"])
def test_without_a_folder_no_path_is_taken(text: str) -> None:
    with pytest.raises(ImageError, match="file paths are not taken"):
        media_file(text, None)


def test_files_are_read_up_to_the_limit(root: Path) -> None:
    (root / "large.png").write_bytes(bytes(101))
    assert read_media("below/a.png", root, 1) == b"a"
    assert read_media("large.png", root, 101) == bytes(101)
    with pytest.raises(ImageError, match="more than 100 bytes"):
        read_media("large.png", root, 100)


@pytest.mark.parametrize("given", ["%%%", "d\u00e9j\u00e0", "abc", 7, None])
def test_what_is_not_base64_says_so(given: object) -> None:
    assert from_base64(" YW\nJj\n") == b"abc"
    with pytest.raises(ImageError, match="not base64"):
        from_base64(given)
