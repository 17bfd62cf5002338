"""Whether a server answers: told within seconds, whatever it is that hangs."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kdscale.trackers import reach
from kdscale.trackers.reach import why_no_answer


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that answers each question by 401."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *arguments: object) -> None:
            """Tests are silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_any_answer_is_one(refusing: str) -> None:
    assert why_no_answer(f"{refusing}/health") is None


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert why_no_answer(f"http://127.0.0.1:{taken.getsockname()[1]}") == "connection refused"


def test_silence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        begun = time.monotonic()
        assert why_no_answer(f"http://127.0.0.1:{mute.getsockname()[1]}", 0.3) is not None
        assert time.monotonic() - begun < 2


def test_a_name_that_is_looked_up_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(reach, "_ask", lambda address, within_s: hangs.wait(30) and None)
    assert why_no_answer("http://slow.invalid", 0.1) == "no answer within 0.1 s"
    hangs.set()
