from __future__ import annotations

from pathlib import Path

from kdscale.trackers import tail
from kdscale.trackers.tail import goes_on, mark_at, whole_lines


def test_a_line_that_is_still_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\ntwo\nthr")
    with path.open("rb") as file:
        assert list(whole_lines(file, 0)) == [b"one\ntwo\n"]
        assert list(whole_lines(file, 4)) == [b"two\n"]
        assert list(whole_lines(file, 8)) == []


def test_a_large_file_comes_in_parts_of_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = b"".join(b"%07d\n" % i for i in range(300_000))
    path.write_bytes(content)
    with path.open("rb") as file:
        parts = list(whole_lines(file, 0))
    assert b"".join(parts) == content
    assert len(parts) > 1
    assert all(part.endswith(b"\n") and len(part) <= tail.READ_BYTES for part in parts)


def test_a_file_that_was_cut_and_grew_again_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"first\nsecond\n")
    with path.open("rb") as file:
        mark = mark_at(file, 13)
        assert goes_on(file, 13, mark)
        assert goes_on(file, 0, 0)
        path.write_bytes(b"first\nsecond\nthird\n")
    with path.open("rb") as file:
        assert goes_on(file, 13, mark)
        path.write_bytes(b"first\n")
    with path.open("rb") as file:
        assert not goes_on(file, 13, mark)
        path.write_bytes(b"first\nSECOND\nthird\n")
    with path.open("rb") as file:
        assert not goes_on(file, 13, mark)
