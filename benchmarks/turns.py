"""Taking turns: workers that train a number of steps when told to, and otherwise sleep.

Both sides of a comparison stay alive and run alternately for a few seconds each, so that whatever else the machine
does meets both alike. A worker waits for a line on standard input, trains, and answers with one line of JSON.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.collectives import Collectives
from benchmarks.figures import REPOSITORY

Batch = TypeVar("Batch")
READY_WITHIN_S = 180.0
COUNT = "count"
"""What a worker is told where a turn's collectives are to be counted."""


# ------------------------------------------------------------------------------- the worker's side


def status_kb(key: str, pid: int | None = None) -> int:
    """VmRSS, VmHWM or another entry of a process, in kB (default: of this one)."""
    for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise KeyError(key)


def forget_peak() -> int:
    """Make the peak memory begin anew, after the imports; returns the memory that they take, in kB."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    return status_kb("VmRSS")


class Turns:
    """Stands between a loop and its batches, and holds it back while it is the other side's turn.

    Args:
        steps: of one turn.
        imports_kb: memory before anything was built.
    """

    def __init__(self, steps: int, imports_kb: int) -> None:
        self._steps, self._imports_kb = steps, imports_kb
        self._left = 0
        self._heard = Collectives()
        self._answers = os.dup(1)
        os.dup2(2, 1)  # nothing else that is printed may enter the protocol

    def between(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches while it is this side's turn; ends the process at the end of standard input."""
        for batch in batches:
            if not self._left:
                self._wait()
            self._left -= 1
            yield batch

    def over(self, steps: int) -> Iterator[int]:
        """Yield numbers of steps likewise."""
        return self.between(range(steps))

    def _wait(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # what was launched is a part of the turn
        answer = {"imports_kb": self._imports_kb, "peak_kb": status_kb("VmHWM"), "rss_kb": status_kb("VmRSS")}
        os.write(self._answers, json.dumps(answer | {"collectives": self._heard.stop()}).encode() + b"\n")
        told = sys.stdin.readline()
        if not told:
            os._exit(0)
        if told.strip() == COUNT:
            self._heard.start()
        self._left = self._steps


# ------------------------------------------------------------------------------- the driver's side


class Workers:
    """The processes of one side.

    Args:
        command: arguments behind `python -m`.
        world: how many processes.
    """

    def __init__(self, command: Sequence[str], world: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=REPOSITORY,
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world)
        ]
        self.answers: list[dict[str, Any]] = []
        """What each process answered last."""
        self._hear()

    def turn(self, word: str = "go") -> float:
        """Let them train one turn; returns its seconds."""
        begun = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n".encode())
            process.stdin.flush()
        self._hear()
        return time.perf_counter() - begun

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def _hear(self) -> None:
        self.answers = []
        for process in self._processes:
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], READY_WITHIN_S)[0]:
                self.close()
                raise TimeoutError(f"{process.args} says nothing for {READY_WITHIN_S:.0f} s")
            line = process.stdout.readline()
            if not line:
                self.close()
                raise RuntimeError(f"{process.args} has ended; what it said stands above")
            self.answers.append(json.loads(line))
