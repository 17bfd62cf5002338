"""What the processes of a stage wrote: any rank of any attempt, and what their job wrote around them."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from kdscale.errors import ConfigError, StageError
from kdscale.jobs.overview import ORDER, SweepView
from kdscale.jobs.slurm.outputs import job_of, job_outputs
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.names import resolve

__all__ = ["LogFile", "Sink", "follow", "log_files", "print_from", "show", "stage_of"]

FOLLOW_EVERY_S = 0.3
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


def show(
    folder: StageFolder, rank: int, attempt: int | None, lines: int, out: Sink, *, of_job: bool = False
) -> tuple[LogFile, int]:
    """Print the log of one rank, or what its job wrote where no rank came so far; what is left out is said on stderr.

    Returns:
        The log, and the position up to which it was printed.

    Args:
        folder: the stage.
        rank: the process's number.
        attempt: which attempt; the newest by default.
        lines: how many of the last lines; 0 for all.
        out: where to print.
        of_job: what the newest job itself wrote, instead of the rank's own log.

    Raises:
        StageError: there is no such log; lists what there is.
    """
    log = _job_log(folder, rank) if of_job else _pick(folder, rank, attempt)
    read = log.path.read_bytes()
    content = read.decode(errors="replace").splitlines(keepends=True)
    left_out = max(0, len(content) - lines) if lines else 0
    if left_out:
        _note(f"{log.path}: {left_out:,} earlier lines; -n 0 prints all")
    out.write("".join(content[left_out:]))
    out.flush()
    if attempt is None and log.attempt:
        _say_what_the_job_wrote_since(folder, log)
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
        position = print_from(log.path, position, out)
        later = [f for f in log_files(folder) if f.rank == log.rank and f.attempt > log.attempt] if newer else []
        if later:
            log, position = later[0], 0
            out.write(f"--- attempt {log.attempt}\n")
        elif resting:
            return
        else:
            time.sleep(FOLLOW_EVERY_S)


# --------------------------------------------------------------------------- inner parts


def _pick(folder: StageFolder, rank: int, attempt: int | None) -> LogFile:
    logs = log_files(folder)
    wanted = attempt if attempt is not None else max((log.attempt for log in logs), default=0)
    found = [log for log in logs if (log.attempt, log.rank) == (wanted, rank)]
    if found:
        return found[0]
    if not logs and attempt is None and job_of(folder) is not None:
        return _job_log(folder, rank)
    there = ", ".join(_said(logs)) or "none: it has not begun"
    which = f"attempt {wanted}, " if logs else ""
    raise StageError(f"{folder.path.name} has no log of {which}rank {rank}; there are {there}")


def _job_log(folder: StageFolder, rank: int) -> LogFile:
    """The output of the newest job; of its first task where this rank's wrote nothing."""
    outputs = job_outputs(folder)
    if not outputs:
        job = job_of(folder)
        why = f"its job {job} has written nothing: python launch/status.py says what it waits for"
        raise StageError(f"{folder.path.name}: {why if job else 'it was never a job of a cluster'}")
    newest = [output for output in outputs if output.job == outputs[-1].job]
    output = next((one for one in newest if one.task == rank), newest[0])
    _note(f"{output.path}: what job {output.job} wrote itself, not a rank of the stage")
    return LogFile(0, rank, output.path)


def _say_what_the_job_wrote_since(folder: StageFolder, log: LogFile) -> None:
    """After a rank's last line SLURM may have said why it was the last."""
    outputs = job_outputs(folder)
    if outputs and outputs[-1].path.stat().st_mtime > log.path.stat().st_mtime + 1:
        _note(f"job {outputs[-1].job} wrote something after that: --job prints it")


def _note(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - beside the log, not in it


def _said(logs: Sequence[LogFile]) -> Iterator[str]:
    for attempt in sorted({log.attempt for log in logs}):
        ranks = [log.rank for log in logs if log.attempt == attempt]
        yield f"attempt {attempt} rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def print_from(path: Path, position: int, out: Sink) -> int:
    """Print a file from a position; returns the new one. A file that was cut is printed anew."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < position:
            position = 0
        file.seek(position)
        out.write(file.read().decode(errors="replace"))
        out.flush()
        return file.tell()
