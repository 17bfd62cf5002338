"""What `launch/track.py` does: bring sweeps to their servers, and open the table with everything in place."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdscale.atomic import read_json
from kdscale.errors import ConfigError
from kdscale.trackers.destination import Destination, destination, root_id
from kdscale.trackers.views import of_sweep

__all__ = ["Place", "Sweep", "follow", "free_port", "serve", "show", "sync"]

Say = Callable[[str], None]
EVERY_S = 60.0
"""Between two looks of `sync --follow`."""


@dataclass(frozen=True)
class Sweep:
    """One sweep to be shipped or shown."""

    root: Path
    folder: Path
    alive: Callable[[Path], bool]
    """Says of a stage's folder whether somebody works in it."""
    launched: bool
    """Whether a launcher of this sweep lives."""

    @property
    def plan(self) -> dict[str, Any]:
        """plan.json; empty where there is none."""
        return read_json(self.folder / "plan.json") or {}

    def destination(self, uri: str | None = None, experiment: str | None = None) -> Destination | None:
        """Where it goes: as planned, unless said otherwise."""
        tracking = self.plan.get("tracking", {})
        return destination(self.root, uri or tracking.get("uri"), experiment or tracking.get("experiment") or "kdscale")


@dataclass(frozen=True)
class Place:
    """Where the UI listens."""

    host: str = "127.0.0.1"
    port: int = 5000

    @property
    def base(self) -> str:
        """Address for a browser on this machine."""
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    def tunnel(self) -> str:
        """What to type on a laptop when this is a login node: with this node's name, not the cluster's."""
        node, user = socket.gethostname(), getpass.getuser()
        if self.host in ("127.0.0.1", "localhost"):
            return f"ssh -L {self.port}:127.0.0.1:{self.port} {user}@{node}"
        return f"ssh -L {self.port}:{node}:{self.port} {user}@GATEWAY"


def sync(sweeps: Sequence[Sweep], uri: str | None, experiment: str | None, say: Say) -> bool:
    """Bring everything of the sweeps to where they are tracked; whatever is there already is not sent again.

    Returns:
        Whether all of it is there now.

    Raises:
        ConfigError: When a destination cannot be used.
    """
    from kdscale.trackers.shipper import Shipper

    complete, away = True, set()
    for sweep in sweeps:
        to = sweep.destination(uri, experiment)
        if to is None:
            say(f"{sweep.folder.name}: tracking.uri is off; --uri ships it all the same")
            continue
        if to.uri in away:
            say(f"{sweep.folder.name}: waits too")
            continue
        report = Shipper(sweep.root, to, sweep.alive).ship(sweep.folder, open_=sweep.launched)
        if report.busy:
            say(f"{sweep.folder.name}: another process is shipping to {to}; try again")
        elif report.problems:
            say(f"{sweep.folder.name}: {to} does not take metrics ({report.problems[0]}); nothing is lost, try again")
            away.add(to.uri)
        else:
            say(f"{sweep.folder.name}: {report.runs} runs at {to}, {report.points} values shipped now")
        complete = complete and not (report.busy or report.problems)
    return complete


def follow(sweeps: Callable[[], Sequence[Sweep]], uri: str | None, experiment: str | None, say: Say) -> None:
    """Bring what is new once a minute, and say what has changed, until Ctrl-C.

    Raises:
        ConfigError: When a destination cannot be used.
    """
    said: dict[str, str] = {}

    def if_new(text: str) -> None:
        name, _, about = text.partition(":")
        if said.get(name) != about and " 0 values shipped now" not in about:
            say(text)
        said[name] = about

    try:
        while True:
            sync(sweeps(), uri, experiment, if_new)
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def show(sweep: Sweep, to: Destination, place: Place, say: Say) -> list[str] | None:
    """Say the links that open the sweep's tables, ready filtered and sorted.

    Returns:
        The command that serves them; None where the server is elsewhere and runs already.

    Raises:
        ConfigError: When the store cannot be used.
    """
    from kdscale.trackers.mlflow import Server, ServerAway, prepare_environment

    plan = sweep.plan
    if to.database is not None and not to.database.exists():
        sync([sweep], to.uri, to.experiment, say)
    base = place.base if to.database is not None else to.uri
    views = of_sweep(plan["name"], sweep.folder.name, plan["axes"])
    try:
        with FileLock(str(to.lock), timeout=30.0):
            server = Server(to, root_id(sweep.root))
            server.show(views)
    except (ServerAway, TimeoutError) as error:
        raise ConfigError(f"tracking.uri: {to} cannot be used ({error})") from error
    width = max(len(view.name) for view in views)
    for view in views:
        say(f"{view.name:{width}}  {view.link(base, server.experiment_id)}")
    say(f"to filter by hand:  {views[1].filter}")
    if to.database is None:
        return None
    say(f"from a laptop, first:  {place.tunnel()}")
    prepare_environment()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", to.uri, "--workers", "1"]
    command += ["--default-artifact-root", str(to.artifacts), "--host", place.host, "--port", str(place.port)]
    return command


def serve(command: Sequence[str], place: Place, say: Say) -> bool:
    """Run the server until somebody ends it.

    Returns:
        Whether it ever answered; otherwise its last words have been said.
    """
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no queues: nothing here uses them
    with tempfile.TemporaryFile("w+") as words:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=environment, start_new_session=True
        )
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        ready = False
        try:
            ready = _answers(place, server)
            if ready:
                say(f"serving {place.base}; Ctrl-C ends it")
                server.wait()
        except KeyboardInterrupt:
            return True
        finally:
            _end_group(server)
            if not ready:
                words.seek(0)
                sys.stderr.write("".join(words.readlines()[-10:]))
    return ready


def _answers(place: Place, server: subprocess.Popen[bytes]) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while server.poll() is None:
        with contextlib.suppress(OSError), direct.open(f"{place.base}/health", timeout=2.0):
            return True
        time.sleep(0.2)
    return False


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End the server with its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5.0)
            return


def free_port(host: str, wanted: int) -> int:
    """The wanted port, or any free one where somebody else has it."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if port == 0:
                    raise ConfigError(f"--host {host}: {os.strerror(error.errno or 0).lower()}") from error
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("either a port was found or the host was refused")
