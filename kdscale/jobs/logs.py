"""What the processes of a stage wrote, and where they stand right now."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from kdscale.errors import ConfigError, StageError
from kdscale.jobs.overview import ORDER, SweepView
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.claims import PROC, this
from kdscale.pipeline.names import resolve

__all__ = ["LogFile", "Sink", "follow", "log_files", "show", "stacks", "stage_of"]

FOLLOW_EVERY_S = 0.3
STACKS_WITHIN_S = 5.0
LISTED = 10
_NAME = re.compile(r"attempt(\d+)-rank(\d+)\.log")


@runtime_checkable
class Sink(Protocol):
    """Where text is printed."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class LogFile(NamedTuple):
    """One process's log of one attempt."""

    attempt: int
    rank: int
    path: Path


def stage_of(name: str, root: Root) -> StageFolder:
    """The stage that a name means; of a sweep, its stages are listed instead, the failed and the running first.

    Raises:
        ConfigError: it means no single stage.
    """
    found = resolve(name, root)
    if isinstance(found, StageFolder):
        return found
    view = SweepView(found, root)
    stages = sorted(view.stages.values(), key=lambda stage: ORDER.index(stage.status))
    lines = [f"  {shlex.quote(stage.name)}  ({stage.status})" for stage in stages[:LISTED]]
    more = [f"  and {len(stages) - LISTED} more"] if len(stages) > LISTED else []
    raise ConfigError("\n".join([f"{view.name} is a sweep; name one of its stages:", *lines, *more]))


def log_files(folder: StageFolder) -> list[LogFile]:
    """All logs of a stage, by attempt and rank."""
    named = [(path, _NAME.fullmatch(path.name)) for path in folder.logs.glob("attempt*-rank*.log")]
    return sorted(LogFile(int(match[1]), int(match[2]), path) for path, match in named if match)


def show(folder: StageFolder, rank: int, attempt: int | None, lines: int, out: Sink) -> tuple[LogFile, int]:
    """Print the log of one rank; what is left out is said on stderr.

    Returns:
        The log, and the position up to which it was printed.

    Args:
        folder: the stage.
        rank: the process's number.
        attempt: which attempt; the newest by default.
        lines: how many of the last lines; 0 for all.
        out: where to print.

    Raises:
        StageError: there is no such log; lists what there is.
    """
    log = _pick(folder, rank, attempt)
    read = log.path.read_bytes()
    content = read.decode(errors="replace").splitlines(keepends=True)
    left_out = max(0, len(content) - lines) if lines else 0
    if left_out:
        print(f"{log.path}: {left_out:,} earlier lines; -n 0 prints all", file=sys.stderr)  # noqa: T201
    out.write("".join(content[left_out:]))
    out.flush()
    return log, len(read)


def follow(folder: StageFolder, log: LogFile, position: int, out: Sink, *, newer: bool) -> None:
    """Print what is appended until the stage rests; goes over to a newer attempt where there is one.

    Args:
        folder: the stage.
        log: what was printed already,
        position: up to here.
        out: where to print.
        newer: whether to go on with the attempts that follow.
    """
    while True:
        resting = folder.claimant() is None and folder.state()["state"] not in ("waiting", "queued", "interrupted")
        position = _print_from(log.path, position, out)
        later = [f for f in log_files(folder) if f.rank == log.rank and f.attempt > log.attempt] if newer else []
        if later:
            log, position = later[0], 0
            out.write(f"--- attempt {log.attempt}\n")
        elif resting:
            return
        else:
            time.sleep(FOLLOW_EVERY_S)


def stacks(folder: StageFolder, out: Sink) -> None:
    """Have every live rank write the Python stack of each of its threads into its log, and print them.

    Raises:
        StageError: nothing runs, it runs on another machine, or its processes do not listen.
    """
    holder = folder.claimant()
    if holder is None:
        raise StageError(f"{folder.path.name} does not run now (its state: {folder.state()['state']})")
    if (holder["host"], holder["namespace"]) != (this()["host"], this()["namespace"]):
        command = f"python launch/logs.py {folder.digest12} --stacks"
        raise StageError(f"{folder.path.name} runs on {holder['host']}, not here; there type: {command}")
    logs = [log for log in log_files(folder) if log.attempt == holder["attempt"]]
    before = {log: log.path.stat().st_size for log in logs}
    asked = [pid for pid in _pids(folder, holder) if _ask(pid)]
    if not asked:
        raise StageError(f"no process of {folder.path.name} listens to SIGUSR1 yet: it is still starting; try again")
    _wait_until_written(before, len(asked))
    for log, size in before.items():
        out.write(f"--- rank {log.rank}\n")
        _print_from(log.path, size, out)


# --------------------------------------------------------------------------- inner parts


def _pick(folder: StageFolder, rank: int, attempt: int | None) -> LogFile:
    logs = log_files(folder)
    wanted = attempt if attempt is not None else max((log.attempt for log in logs), default=0)
    found = [log for log in logs if (log.attempt, log.rank) == (wanted, rank)]
    if found:
        return found[0]
    there = ", ".join(_said(logs)) or "none: it has not begun"
    which = f"attempt {wanted}, " if logs else ""
    raise StageError(f"{folder.path.name} has no log of {which}rank {rank}; there are {there}")


def _said(logs: Sequence[LogFile]) -> Iterator[str]:
    for attempt in sorted({log.attempt for log in logs}):
        ranks = [log.rank for log in logs if log.attempt == attempt]
        yield f"attempt {attempt} rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _print_from(path: Path, position: int, out: Sink) -> int:
    """Print a file from a position; returns the new one. A file that was cut is printed anew."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < position:
            position = 0
        file.seek(position)
        out.write(file.read().decode(errors="replace"))
        out.flush()
        return file.tell()


def _pids(folder: StageFolder, holder: Mapping[str, Any]) -> list[int]:
    """The processes of the attempt under way; the claim names rank 0's."""
    attempts = folder.state()["attempts"]
    return list(attempts[-1].get("pids") or [holder["pid"]]) if attempts else [int(holder["pid"])]


def _ask(pid: int) -> bool:
    """Send SIGUSR1 to a process that waits for it; any other would be killed by it."""
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return False
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
    if not caught >> (signal.SIGUSR1 - 1) & 1:
        return False
    os.kill(pid, signal.SIGUSR1)
    return True


def _wait_until_written(before: Mapping[LogFile, int], expected: int) -> None:
    """Until as many logs have grown as processes were asked, and then a moment for the rest of their lines."""
    deadline = time.monotonic() + STACKS_WITHIN_S
    while time.monotonic() < deadline:
        if sum(log.path.stat().st_size > size for log, size in before.items()) >= min(expected, len(before)):
            time.sleep(0.2)
            return
        time.sleep(0.05)
