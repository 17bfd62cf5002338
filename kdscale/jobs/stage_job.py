"""One process of one stage: what a cluster starts, and what a local run starts.

    python -m kdscale.jobs.stage_job ROOT DIGEST        with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT set

Everything it needs is found on disk from these two strings, so starting it again is always right.
Exit codes: 0 done, 75 interrupted (it saved itself and will go on), 1 failed, 74 the disk is full, 76 a rank hung,
143 cancelled.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kdscale import atomic

__all__ = ["CANCELLED", "DONE", "FAILED", "HUNG", "INTERRUPTED", "NO_SPACE", "die_with_parent", "error_file", "main"]

DONE, FAILED, NO_SPACE, INTERRUPTED, HUNG, CANCELLED = 0, 1, 74, 75, 76, 143
_PR_SET_PDEATHSIG = 1
log = logging.getLogger("kdscale")


def main(
    root: Path,
    digest: str,
    *,
    watch: Callable[[Any], None] = lambda stop: None,
    last: Callable[[int], int] = lambda code: code,
) -> NoReturn:
    """Run the stage and leave the process with its exit code.

    Args:
        root: of the runs.
        digest: of the stage.
        watch: given the stage's Stop before it begins, to ask for an end by it.
        last: called with the exit code when all is saved; returns the one to leave with.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    code = FAILED
    try:
        code = _run(root, digest, watch)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must be written down before the process is gone
        code = NO_SPACE if atomic.is_disk_full(error) else FAILED
        _record(root, digest, error)
        traceback.print_exc()
    finally:
        code = _said_last(last, code)
        sys.stdout.flush()
        sys.stderr.flush()
        # past the interpreter's own exit, where gloo's threads sometimes abort a process that has done its work
        os._exit(code)


def _said_last(last: Callable[[int], int], code: int) -> int:
    try:
        return last(code)
    except BaseException:  # noqa: BLE001 - the process ends here, with the code that it had
        traceback.print_exc()
        return code


def _run(root: Path, digest: str, watch: Callable[[Any], None]) -> int:
    import torch

    from kdscale import ranks
    from kdscale.pipeline.artifacts import Root

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from kdscale.train.stop import Stop

    stop = Stop()
    _listen(stop)
    watch(stop)
    folder = Root.find(root).stage(digest)
    if folder is not None:
        _guard(folder.logs, stop)
    kind = folder.definition()["kind"] if folder is not None else "train"
    if kind != "convert":
        ranks.join("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if _RUNNERS[kind](root, digest, stop):
        return DONE
    cancelled = folder is not None and folder.cancel_request() is not None
    return CANCELLED if cancelled else INTERRUPTED


def _convert(root: Path, digest: str, stop: Any) -> bool:
    from kdscale.train.convert import run_conversion

    return run_conversion(root, digest, stop)


def _fill(root: Path, digest: str, stop: Any) -> bool:
    from kdscale.train.fill_cache import run_fill

    return run_fill(root, digest, stop)


def _measure(root: Path, digest: str, stop: Any) -> bool:
    from kdscale.train.measure import run_measurement

    return run_measurement(root, digest, stop)


def _train(root: Path, digest: str, stop: Any) -> bool:
    from kdscale.train.stage import run_stage

    return run_stage(root, digest, stop) == "done"


_RUNNERS: dict[str, Callable[[Path, str, Any], bool]] = {
    "convert": _convert, "fill": _fill, "train": _train, "evaluate": _measure,
}  # fmt: skip


def _guard(logs: Path, stop: Any) -> None:
    from kdscale.jobs.hang import HANG_AFTER_S, Guard

    after_s = float(os.environ.get("KDSCALE_HANG_AFTER_S", HANG_AFTER_S))
    attempt, rank = int(os.environ.get("KDSCALE_ATTEMPT", "1")), int(os.environ.get("RANK", "0"))
    Guard(logs, stop, attempt, rank, int(os.environ.get("WORLD_SIZE", "1")), after_s).start()


def _listen(stop: Any) -> None:
    """Turn signals into a request; nothing else happens in a handler."""

    def asked(number: int, frame: FrameType | None) -> None:
        del frame
        stop.ask(f"asked to stop by {signal.Signals(number).name}")

    signal.signal(signal.SIGTERM, asked)
    signal.signal(signal.SIGUSR2, asked)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the launcher's to handle


def error_file(stage_folder: Path, attempt: int, rank: int) -> Path:
    """Where a rank leaves the cause of its end."""
    return stage_folder / "logs" / f"attempt{attempt}-rank{rank}.error.json"


def _record(root: Path, digest: str, error: BaseException) -> None:
    from kdscale.pipeline.artifacts import Root

    folder = Root.find(root).stage(digest)
    if folder is None:
        return
    rank, attempt = int(os.environ.get("RANK", "0")), int(os.environ.get("KDSCALE_ATTEMPT", "1"))
    document = {
        "rank": rank,
        "host": socket.gethostname(),
        "kind": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "errno": _errno_of(error),
        "disk_full": atomic.is_disk_full(error),
        "own": type(error).__module__.startswith("kdscale."),
    }
    try:
        atomic.write_json(error_file(folder.path, attempt, rank), document)
    except OSError:
        print(json.dumps(document), file=sys.stderr)  # noqa: T201 - the disk may be the very problem


def _errno_of(error: BaseException | None) -> int | None:
    """The operating system's own number, of an error or of one behind it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        error = error.__cause__
    return None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: a killed launcher leaves no writer."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died in between
        os._exit(FAILED)


if __name__ == "__main__":
    if os.environ.get("KDSCALE_PARENT") == str(os.getppid()):
        die_with_parent()
    main(Path(sys.argv[1]), sys.argv[2])
