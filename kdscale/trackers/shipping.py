"""The process that ships a sweep while it runs: started by the launcher, out of the way of training.

    python -m kdscale.trackers.shipping RUNS SWEEP_FOLDER [--stage STAGE_FOLDER]

It makes a pass every few seconds at low priority. The line `finish` on its standard input asks for a last pass and the
answer, one line of JSON on standard output; the end of standard input, or of the launcher, ends it at once. Lines for
people go to standard error. The launcher never imports MLflow.

A job of a cluster starts one for its own stage. With `tracking.ship: auto` that asks the server once, and ends where
the node gets no answer: the login node ships then.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kdscale.atomic import read_json
from kdscale.errors import KDScaleError
from kdscale.trackers.destination import Destination, destination
from kdscale.trackers.reach import why_no_answer

__all__ = ["ShipperProcess", "main", "start_shipper"]

log = logging.getLogger(__name__)

EVERY_S = 5.0
MOST_EVERY_S = 60.0
REST_FACTOR = 10
"""A pass that took long is followed by a rest of this many times as long: shipping never eats a core."""
NICE = 10
SAID = "tracking: "
PR_SET_PDEATHSIG = 1


# --------------------------------------------------------------------------- the launcher's side


class ShipperProcess:
    """Handle on the shipping process; nothing here ever raises or blocks beyond its time limit."""

    def __init__(self, process: subprocess.Popen[str] | None, uri: str, say: Callable[[str], None]) -> None:
        """Takes over a process that was just started; None for a sweep that is not tracked."""
        self.uri = uri
        self._process, self._say = process, say
        self._answer: list[str] = []
        self._noise: deque[str] = deque(maxlen=5)
        self._readers: list[threading.Thread] = []
        if process is not None:
            for stream, take in ((process.stdout, self._answer.append), (process.stderr, self._heard)):
                assert stream is not None
                self._readers.append(threading.Thread(target=_read, args=(stream, take), daemon=True))
                self._readers[-1].start()

    def finish(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Ask for a last pass and wait for it.

        Returns:
            `runs` on the server, `points` shipped, `uri`, `problems` (texts for people; empty when all is there).
        """
        if self._process is None:
            return {"runs": 0, "points": 0, "uri": self.uri, "problems": []}
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write("finish\n")
            self._process.stdin.flush()
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._without_answer(f"was not done after {timeout_s:.0f} s")
        self._close()
        try:
            answer: dict[str, Any] = json.loads(self._answer[-1])
        except (IndexError, ValueError):
            return self._without_answer(f"ended with exit code {code} ({' / '.join(self._noise) or 'no output'})")
        return answer

    def kill(self) -> None:
        """End it now; what is not shipped stays in the spools."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def _close(self) -> None:
        """Take what it said last, and let go of the pipes."""
        assert self._process is not None
        for reader in self._readers:
            reader.join(2.0)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _without_answer(self, what: str) -> dict[str, Any]:
        problem = f"the shipper {what}: `python launch/track.py sync` brings the rest"
        return {"runs": 0, "points": 0, "uri": self.uri, "problems": [problem]}

    def _heard(self, line: str) -> None:
        if line.startswith(SAID):
            self._say(line.rstrip())
        elif line.strip():
            self._noise.append(line.strip())


def start_shipper(
    root: Path,
    sweep_folder: Path,
    uri: str | None,
    experiment: str,
    *,
    stage: Path | None = None,
    say: Callable[[str], None] = log.warning,
) -> ShipperProcess:
    """Start shipping a sweep beside it; call it from the main thread, because the process dies with its thread.

    Args:
        root: The runs folder.
        sweep_folder: Its plan.json must be there.
        uri: `tracking.uri`; None for ROOT/mlflow.db, "off" for nothing at all.
        experiment: `tracking.experiment`.
        stage: Folder of the stage whose job this is; None for the launcher, who ships all of the sweep.
        say: Called from another thread with what people should know, once: the server is away, is back.

    Raises:
        ConfigError: When the uri cannot be used.
    """
    to = destination(root, uri, experiment)
    if to is None:
        return ShipperProcess(None, "off", say)
    command = [sys.executable, "-m", "kdscale.trackers.shipping", str(root), str(sweep_folder)]
    command += ["--uri", to.uri, "--experiment", experiment]
    command += ["--stage", str(stage)] if stage is not None else []
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is the launcher's: it asks for the last pass
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    return ShipperProcess(process, to.uri, say)


def _read(lines: Iterable[str], take: Callable[[str], None]) -> None:
    for line in lines:
        take(line)


# --------------------------------------------------------------------------- the shipping process


class _Voice:
    """Says each trouble once, and when it is over."""

    def __init__(self) -> None:
        self._trouble = ""

    def __call__(self, problems: list[str], uri: str) -> None:
        trouble = problems[0] if problems else ""
        if trouble and not self._trouble:
            self._line(f"{uri} does not take metrics ({trouble}). Training goes on, they are kept and follow later")
        elif self._trouble and not trouble:
            self._line(f"{uri} takes metrics again, what was kept has been brought")
        self._trouble = trouble

    def _line(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"{SAID}{text}", file=sys.stderr, flush=True)  # noqa: T201


def _run(root: Path, folder: Path, to: Destination, stage: Path | None) -> dict[str, Any]:
    """Ship until asked for the last pass."""
    from kdscale.trackers.shipper import Shipper

    shipper, voice, points = Shipper(root, to), _Voice(), 0
    for number in itertools.count():
        started = time.monotonic()
        report = shipper.ship(folder, open_=True, wait_s=1.0, stage=stage)
        took_s = time.monotonic() - started if number else 0.0  # the first pass loads MLflow and makes the database
        points += report.points
        voice(report.problems, to.uri)
        if _asked_to_finish(min(MOST_EVERY_S, max(EVERY_S, REST_FACTOR * took_s))):
            break
    report = shipper.ship(folder, open_=stage is not None, wait_s=10.0, stage=stage)  # after a job others go on
    problems = list(report.problems)
    if report.busy:
        problems.append("another process was shipping to the same place the whole time")
    hint = "`python launch/track.py sync` brings what is missing"
    return {
        "runs": report.runs,
        "points": points + report.points,
        "uri": to.uri,
        "problems": [f"{problem}: {hint}" for problem in problems],
    }


def _out_of_reach(to: Destination, ship: str, stage: Path | None) -> bool:
    """Whether this is a node that gets no answer from the server; asked once, where `auto` leaves it open."""
    if stage is None or ship != "auto":
        return False
    why = why_no_answer(f"{to.uri}/health")
    if why is not None:
        host = socket.gethostname()
        print(f"{SAID}{to.uri} does not answer {host} ({why}): the login node ships", file=sys.stderr, flush=True)  # noqa: T201
    return why is not None


def _asked_to_finish(wait_s: float) -> bool:
    """Rest; True when the launcher asks for the end. Without a launcher there is nobody to ship for: exit."""
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    if not ready:
        return False
    if not sys.stdin.readline():
        raise SystemExit(1)
    return True


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this process when the launcher ends, however it ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> int:
    """Entry of the shipping process."""
    parent = os.getppid()
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICE)
    parser = argparse.ArgumentParser(prog="python -m kdscale.trackers.shipping", description=__doc__)
    parser.add_argument("runs", type=Path, help="the runs folder")
    parser.add_argument("sweep", type=Path, help="the sweep's folder below it")
    parser.add_argument("--uri", help="default: what plan.json says")
    parser.add_argument("--experiment", help="default: what plan.json says")
    parser.add_argument("--stage", type=Path, help="folder of the only stage to ship")
    args = parser.parse_args(argv)
    tracking = (read_json(args.sweep / "plan.json") or {}).get("tracking", {})
    uri, experiment = args.uri or tracking.get("uri"), args.experiment or tracking.get("experiment", "kdscale")
    try:
        to = destination(args.runs, uri, experiment)
        if to is None or _out_of_reach(to, tracking.get("ship", "auto"), args.stage):
            answer = {"runs": 0, "points": 0, "uri": to.uri if to is not None else "off", "problems": []}
        else:
            answer = _run(args.runs, args.sweep, to, args.stage)
    except KDScaleError as error:
        answer = {"runs": 0, "points": 0, "uri": str(uri), "problems": [str(error)]}
    print(json.dumps(answer), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
