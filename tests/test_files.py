from __future__ import annotations

from pathlib import Path

import pytest

from masm.files import write_text


def test_former_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "“a”\n")
    assert path.read_bytes() == "“a”\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \ud800")
    assert path.read_text(encoding="utf-8") == "“a”\n"
    assert list(tmp_path.iterdir()) == [path]
