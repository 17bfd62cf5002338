"""A process that has imported everything once and forks a fresh worker for each rank that is asked for.

Importing torch, numba and FFCV takes several seconds; planning runs meanwhile, and a sweep of many small
stages pays once. A fork is fresh: the parent has computed nothing, touched no GPU, and drawn no number.

    launcher --JSON lines--> warm parent --fork--> workers          (each dies with the one before it)
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdscale.jobs.stage_job import die_with_parent, main

__all__ = ["WarmParent"]


@dataclass
class WarmParent:
    """The launcher's side: asks for workers, learns of their ends."""

    _process: subprocess.Popen[bytes] = field(init=False)
    _buffer: bytes = b""
    ended: dict[int, int] = field(default_factory=dict)
    """Exit code by pid; minus the signal's number when one killed it."""
    _started: dict[int, int] = field(default_factory=dict)
    _asked: int = 0

    def __post_init__(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "KDSCALE_PARENT": str(os.getpid()),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kdscale.jobs.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches the launcher alone
        )

    def start(self, root: Path, digest: str, environment: dict[str, str], log: Path) -> int:
        """Fork one worker; returns its pid."""
        self._asked += 1
        request = {"id": self._asked, "root": str(root), "digest": digest, "env": environment, "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while self._asked not in self._started:
            self._read(timeout_s=60.0)
        return self._started[self._asked]

    def poll(self, pid: int) -> int | None:
        """A worker's exit code, or None while it runs."""
        self._read(timeout_s=0.0)
        return self.ended.get(pid)

    def close(self) -> None:
        """End the warm parent, and with it any worker that still runs."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self._started:
            self._process.kill()  # it still imports, for nothing
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self, timeout_s: float) -> None:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        if not select.select([handle], [], [], timeout_s)[0]:
            return
        block = os.read(handle, 1 << 16)
        if not block:
            raise RuntimeError("the process that starts workers has died; give the same command again")
        *lines, self._buffer = (self._buffer + block).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "started" in message:
                self._started[message["id"]] = message["started"]
            else:
                self.ended[message["ended"]] = message["code"]


def serve() -> None:
    """The warm parent's side."""
    die_with_parent()
    replies = os.dup(1)
    os.dup2(2, 1)  # nothing that an import prints may enter the protocol
    _import_everything()
    wake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            _report_ends(replies)
        if 0 in ready:
            block = os.read(0, 1 << 16)
            if not block:
                os._exit(0)
            *lines, buffer = (buffer + block).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = _fork(request, [replies, wake, alarm])
                _send(replies, {"id": request["id"], "started": pid})


def _import_everything() -> None:
    for load in (_import_stages, _import_compiler, _import_ffcv):
        try:
            load()
        except (ImportError, OSError):  # what a stage really needs says so itself, in its own log
            continue
    gc.collect()
    gc.freeze()  # workers share these pages until they write to them


def _import_stages() -> None:
    stages = ("kdscale.train.stage", "kdscale.train.convert", "kdscale.train.fill_cache")
    for name in ("torch", "numba", "safetensors.torch", *stages):
        importlib.import_module(name)


def _import_compiler() -> None:
    """What torch imports when the first optimizer is made: a second for each rank of each stage, else."""
    importlib.import_module("torch._dynamo")


def _import_ffcv() -> None:
    """Through its fence, with what decodes arrays: a second and 100 MB less for each worker."""
    from kdscale.data.ffcv_fence import compile_array_decoder

    compile_array_decoder()


def _fork(request: dict[str, Any], private: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        for handle in private:
            os.close(handle)
        _redirect(request["log"])
        os.environ.update(request["env"])
        main(Path(request["root"]), request["digest"])
    finally:
        os._exit(1)


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _report_ends(replies: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(replies, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _send(handle: int, message: dict[str, Any]) -> None:
    os.write(handle, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    serve()
