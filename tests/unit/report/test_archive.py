"""One file for many: equal content gives equal bytes, and what is damaged or would do harm is refused."""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.errors import ConfigError
from kdscale.report import archive
from kdscale.report.archive import SUMS, pack, read_archive, sums_of, unpack

FILES = {"a/b.txt": b"one", "c.txt": b"two" * 1000}
NAMES = st.from_regex(r"[a-z]{1,6}(/[a-z]{1,6}){0,2}\.txt", fullmatch=True)


def written(path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], sums: str | None = None) -> Path:
    """A zip file of other making, whose sums are right unless told."""
    named = {e if isinstance(e, str) else e.filename: data for e, data in entries}
    with zipfile.ZipFile(path, "w") as made:
        for entry, data in entries:
            made.writestr(entry, data)
        made.writestr(SUMS, sums_of(named) if sums is None else sums)
    return path


@given(st.dictionaries(NAMES, st.binary(max_size=50)))
def test_what_is_packed_is_read_and_order_does_not_matter(files: dict[str, bytes]) -> None:
    packed = pack(files)
    assert packed == pack(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(packed)) as made:
        assert sorted(made.namelist()) == made.namelist()
        assert {n: made.read(n) for n in made.namelist() if n != SUMS} == files


def test_a_folder_has_the_files(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(pack(FILES))
    unpack(tmp_path / "x.zip", tmp_path / "out")
    found = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == FILES


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/passwd", "leads out"),
        ("../up.txt", "leads out"),
        ("a/../../up.txt", "leads out"),
        ("a\\..\\up.txt", "leads out"),
        ("C:/up.txt", "leads out"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_before_a_byte_is_written(tmp_path: Path, name: str, said: str) -> None:
    path = written(tmp_path / "x.zip", [("fine.txt", b"1"), (name, b"2")])
    with pytest.raises(ConfigError, match=said):
        unpack(path, tmp_path / "deep/out")
    assert not (tmp_path / "deep").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ConfigError, match="link is a link"):
        read_archive(written(tmp_path / "x.zip", [(link, b"/etc/passwd")]))


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = written(tmp_path / "x.zip", [("a", b"1"), ("a", b"2")])
    with pytest.raises(ConfigError, match="a is in it twice"):
        read_archive(path)


def test_more_than_the_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.zip").write_bytes(pack(FILES))
    monkeypatch.setattr(archive, "MOST_BYTES", 2000)
    with pytest.raises(ConfigError, match="unpacks to more than"):
        read_archive(tmp_path / "x.zip")
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    with pytest.raises(ConfigError, match="3 files, more than the 2"):
        read_archive(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("entries", "sums", "said"),
    [
        ([("a", b"1")], sums_of({"a": b"2"}), "a is damaged, or was changed: fetch it again"),
        ([("a", b"1")], sums_of({"a": b"1", "b": b"2"}), "b is missing"),
        ([("a", b"1"), ("extra", b"2")], sums_of({"a": b"1"}), "extra is damaged, or was changed"),
    ],
)
def test_a_file_that_is_not_what_its_sum_says_is_named(
    tmp_path: Path, entries: list[tuple[zipfile.ZipInfo | str, bytes]], sums: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_archive(written(tmp_path / "x.zip", entries, sums))


def test_other_files_are_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_archive(tmp_path / "absent.zip")
    (tmp_path / "x.zip").write_text("name: x")
    with pytest.raises(ConfigError, match="no zip file"):
        read_archive(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as other:
        other.writestr("a", b"1")
    with pytest.raises(ConfigError, match="has no SHA256SUMS"):
        read_archive(tmp_path / "y.zip")


@given(st.data())
def test_any_byte_that_is_changed_is_seen_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    packed = bytearray(pack(FILES))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flipped") / "x.zip"
    path.write_bytes(packed)
    try:
        found = read_archive(path)
    except ConfigError:
        return
    assert found == FILES


def test_sums_are_those_of_sha256sum() -> None:
    assert sums_of({"b": b"2", "a": b"1"}).splitlines()[0] == f"{hashlib.sha256(b'1').hexdigest()}  a"
