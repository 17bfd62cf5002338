"""A tiny published data set, and a web server on the loopback that publishes it."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kdscale.data.packages import Package, Publication


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KDSCALE_DATA", raising=False)


@dataclass
class Site:
    """What the server serves, and what it was asked for."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    failures: int = 0
    """How many of the next answers are cut off in the middle."""


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            content = site.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            site.failures -= 1
            self.wfile.write(content if site.failures < 0 else content[: len(content) // 2])

        def log_message(self, *arguments: object) -> None:
            """Tests are silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def single() -> tuple[Publication, dict[str, bytes]]:
    """Two compressed single files: (publication, the files as published)."""
    pieces = {"images": bytes(range(256)) * 8, "labels": b"\1\2\3"}
    files = {f"{name}.gz": gzip.compress(content, mtime=1) for name, content in pieces.items()}
    packages = tuple(
        Package(file, md5(content), {file[:-3]: md5(pieces[file[:-3]])}) for file, content in files.items()
    )
    return Publication("tiny", packages, urls=(), aliases=("Tiny/raw",)), files


@pytest.fixture
def archive() -> tuple[Publication, dict[str, bytes], bytes]:
    """An archive of two pieces: (publication, pieces, the archive as published)."""
    pieces = {"one.bin": b"one" * 50, "two.bin": b"two" * 70}
    packed = packed_as_tar({f"folder/{name}": content for name, content in pieces.items()} | {"folder/readme": b"x"})
    package = Package("set.tar.gz", md5(packed), {n: md5(c) for n, c in pieces.items()}, folder="folder")
    return Publication("packed", (package,), urls=()), pieces, packed


@pytest.fixture
def pack() -> Callable[[dict[str, bytes]], bytes]:
    return packed_as_tar


def packed_as_tar(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()
