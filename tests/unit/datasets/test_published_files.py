"""Published files: found in three places, trusted by checksum however packed, downloaded whole or not at all."""

from __future__ import annotations

import gzip
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdscale.data import sources
from kdscale.data.download import forbid_downloads
from kdscale.data.packages import Publication
from kdscale.data.sources import PublishedFiles
from kdscale.errors import DataError

Single = tuple[Publication, dict[str, bytes]]
Archive = tuple[Publication, dict[str, bytes], bytes]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# --------------------------------------------------------------------------- where


@pytest.mark.parametrize("below", ["", "tiny", "Tiny/raw"])
def test_a_data_root_may_hold_the_files_or_their_folder(tmp_path: Path, single: Single, below: str) -> None:
    publication, files = single
    write(tmp_path / "root" / below, files)
    found = PublishedFiles(publication, tmp_path / "root", download=False)
    assert found.read("labels", "images") == [b"\1\2\3", bytes(range(256)) * 8]


def test_places_are_searched_in_order(tmp_path: Path, single: Single, monkeypatch: pytest.MonkeyPatch) -> None:
    publication, files = single
    publication = replace(publication, system=(write(tmp_path / "system", files),))
    monkeypatch.setenv("KDSCALE_DATA", str(tmp_path / "environment"))

    def place(root: Path | None) -> Path:
        return PublishedFiles(publication, root, download=False).locate()["images.gz"].parent

    assert place(tmp_path / "root") == tmp_path / "system"
    write(tmp_path / "environment" / "tiny", files)
    assert place(tmp_path / "root") == tmp_path / "environment" / "tiny"
    write(tmp_path / "root", files)
    assert place(tmp_path / "root") == tmp_path / "root"


def test_the_error_names_the_three_places_and_what_is_lacking(
    tmp_path: Path, single: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication, files = single
    root = write(tmp_path / "root", {"images.gz": files["images.gz"]})
    publication = replace(publication, system=(tmp_path / "system",), urls=("http://127.0.0.1:9",), hint="ask a friend")
    monkeypatch.setenv("KDSCALE_DATA", str(tmp_path / "environment"))
    with pytest.raises(DataError) as error:
        PublishedFiles(publication, root, download=False).locate()
    text = str(error.value)
    assert f"{root} lacks labels.gz" in text
    assert f"KDSCALE_DATA {tmp_path / 'environment'}" in text
    assert f"system folder  {tmp_path / 'system'}: none of the files" in text
    assert "downloads are off" in text
    assert "ask a friend" in text


# --------------------------------------------------------------------------- trusted


def test_packed_packed_anew_and_unpacked_are_the_same_data(tmp_path: Path, single: Single) -> None:
    publication, files = single
    forms: dict[str, dict[str, bytes]] = {
        "published": files,
        "anew": {name: gzip.compress(gzip.decompress(content), 1, mtime=7) for name, content in files.items()},
        "unpacked": {name[:-3]: gzip.decompress(content) for name, content in files.items()},
    }
    assert forms["anew"] != files
    found = {name: PublishedFiles(publication, write(tmp_path / name, form)) for name, form in forms.items()}
    assert len({f.fingerprint() for f in found.values()}) == 1
    assert all(f.is_published() for f in found.values())


def test_an_archive_and_its_folder_are_the_same_data(tmp_path: Path, archive: Archive) -> None:
    publication, pieces, packed = archive
    roots = [
        write(tmp_path / "packed", {"set.tar.gz": packed}),
        write(tmp_path / "beside" / "folder", pieces).parent,
        write(tmp_path / "inside", pieces),
    ]
    found = [PublishedFiles(publication, root) for root in roots]
    assert len({f.fingerprint() for f in found}) == 1
    assert [f.read("two.bin") for f in found] == [[pieces["two.bin"]]] * 3


def test_an_unpacked_folder_with_other_bytes_is_another_data_set(tmp_path: Path, archive: Archive) -> None:
    publication, pieces, packed = archive
    published = PublishedFiles(publication, write(tmp_path / "packed", {"set.tar.gz": packed}))
    changed = PublishedFiles(publication, write(tmp_path / "folder", pieces | {"two.bin": b"mine"}))
    assert not changed.is_published()
    assert changed.fingerprint() != published.fingerprint()
    assert changed.read("two.bin") == [b"mine"]


@pytest.mark.parametrize("damage", [lambda c: c[:-12], lambda c: c[:20], lambda c: b"", lambda c: b"<html>" + c])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, single: Single, damage: Any) -> None:
    publication, files = single
    root = write(tmp_path / "root", files | {"images.gz": damage(files["images.gz"])})
    with pytest.raises(DataError, match=r"images\.gz: .*fetch it again"):
        PublishedFiles(publication, root).fingerprint()


@pytest.mark.parametrize("damage", [lambda c: c[:60], lambda c: b"", lambda c: b"<html>" + c])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, archive: Archive, damage: Any) -> None:
    root = write(tmp_path / "root", {"set.tar.gz": damage(archive[2])})
    with pytest.raises(DataError, match=r"set\.tar\.gz: .*fetch it again"):
        PublishedFiles(archive[0], root).fingerprint()


def test_an_archive_that_lacks_a_piece_or_has_another_is_refused(tmp_path: Path, archive: Archive, pack: Any) -> None:
    root = write(tmp_path / "lacks", {"set.tar.gz": pack({"folder/one.bin": archive[1]["one.bin"]})})
    with pytest.raises(DataError, match=r"lacks two\.bin"):
        PublishedFiles(archive[0], root).fingerprint()
    root = write(tmp_path / "other", {"set.tar.gz": pack(archive[1] | {"two.bin": b"mine"})})
    with pytest.raises(DataError, match=r"not the published packed: .*two\.bin differs too"):
        PublishedFiles(archive[0], root).fingerprint()


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, single: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication, files = single
    root = write(tmp_path / "root", files)
    first = PublishedFiles(publication, root).fingerprint()
    checks: list[Path] = []
    really = sources.check
    monkeypatch.setattr(
        sources, "check", lambda name, path, package: checks.append(path) or really(name, path, package)
    )
    assert PublishedFiles(publication, root).fingerprint() == first
    assert checks == []
    os.utime(root / "labels.gz", ns=(1, 1))
    assert PublishedFiles(publication, root).fingerprint() == first
    assert checks == [root / "labels.gz"]
    PublishedFiles(publication, root).checksums(again=True)
    assert len(checks) == 3


def test_bytes_that_change_behind_an_unchanged_date_are_caught_when_read(tmp_path: Path, single: Single) -> None:
    publication, files = single
    root = write(tmp_path / "root", {name[:-3]: gzip.decompress(content) for name, content in files.items()})
    PublishedFiles(publication, root).fingerprint()
    before = (root / "labels").stat()
    (root / "labels").write_bytes(b"\3\2\1")
    os.utime(root / "labels", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="changed since"):
        PublishedFiles(publication, root).read("labels")


def test_without_a_place_for_notes_it_is_checked_each_time(
    tmp_path: Path, single: Single, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    publication, files = single
    assert PublishedFiles(publication, write(tmp_path / "root", files)).is_published()


# --------------------------------------------------------------------------- downloaded


def test_a_download_arrives_whole_and_once(
    tmp_path: Path, single: Single, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication, files = single
    publication = replace(publication, urls=(site.url + "/data",))
    site.files = {f"/data/{name}": content for name, content in files.items()}
    monkeypatch.setenv("KDSCALE_DATA", str(tmp_path / "data"))
    planned = PublishedFiles(publication, None, download=False).fingerprint()
    assert site.asked == []
    assert PublishedFiles(publication, None).fingerprint() == planned
    assert PublishedFiles(publication, None).fingerprint() == planned
    assert sorted(site.asked) == ["/data/images.gz", "/data/labels.gz"]
    assert {path.name for path in (tmp_path / "data" / "tiny").iterdir() if not path.name.startswith(".")} == set(files)


def test_without_kdscale_data_it_goes_to_the_cache(tmp_path: Path, single: Single, site: Any) -> None:
    publication, files = single
    site.files = {f"/{name}": content for name, content in files.items()}
    found = PublishedFiles(replace(publication, urls=(site.url,)), None)
    assert found.locate()["images.gz"] == tmp_path / "cache" / "kdscale" / "data" / "tiny" / "images.gz"


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path, single: Single, site: Any) -> None:
    publication, files = single
    site.files, site.failures = {f"/{name}": content for name, content in files.items()}, 2
    assert PublishedFiles(replace(publication, urls=(site.url,)), None).is_published()
    assert len(site.asked) == 4


def test_the_next_mirror_is_asked_and_wrong_bytes_never_land(tmp_path: Path, single: Single, site: Any) -> None:
    publication, files = single
    site.files = {f"/good/{name}": content for name, content in files.items()}
    site.files["/bad/images.gz"] = b"a captive portal"
    publication = replace(publication, urls=(site.url + "/bad", site.url + "/good"))
    assert PublishedFiles(publication, None).is_published()
    assert site.asked.count("/bad/labels.gz") == 1, "what is not there is not asked for again"

    site.files = {"/bad/images.gz": b"a captive portal"}
    lonely = PublishedFiles(replace(publication, name="lonely", urls=(site.url + "/bad",)), None)
    with pytest.raises(DataError, match=r"download       http://127.0.0.1:\d+/bad/images.gz: MD5 .* published"):
        lonely.locate()
    assert [path.name for path in lonely.target().iterdir() if path.name != ".images.gz.lock"] == []


def test_without_a_network_the_error_has_the_address_and_the_cause(tmp_path: Path, single: Single) -> None:
    publication = replace(single[0], urls=("http://127.0.0.1:9/nowhere",))
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/nowhere/images\.gz: .*[Rr]efused"):
        PublishedFiles(publication, tmp_path).fingerprint()


@pytest.fixture
def job() -> Iterator[None]:
    """As in a job of a cluster."""
    forbid_downloads()
    yield
    urllib.request.install_opener(None)  # type: ignore[arg-type]  # what it is before the first request


def test_a_job_never_downloads_though_it_could(
    tmp_path: Path, single: Single, site: Any, job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    publication, files = single
    site.files = {f"/{name}": content for name, content in files.items()}
    monkeypatch.setenv("http_proxy", site.url)
    with pytest.raises(DataError, match="--prepare"):
        PublishedFiles(replace(publication, urls=(site.url,)), tmp_path / "root").read("labels")
    with pytest.raises(DataError, match="a job never downloads"):
        urllib.request.urlopen(f"{site.url}/weights.pt")  # as torch.hub does
    assert site.asked == []


def test_a_job_reads_what_was_downloaded_before(tmp_path: Path, single: Single, job: None) -> None:
    publication, files = single
    write(tmp_path / "root", files)
    found = PublishedFiles(replace(publication, urls=("http://nowhere.invalid",)), tmp_path / "root")
    assert found.read("labels") == [b"\1\2\3"]


def test_what_nobody_publishes_cannot_be_planned_without_it(tmp_path: Path, single: Single) -> None:
    with pytest.raises(DataError, match="nobody publishes it as a download"):
        PublishedFiles(single[0], tmp_path, download=False).fingerprint()
