"""One task of a SLURM job: what submitit calls on each node, once for each process of a stage.

It takes its rank from SLURM, tells the others where to meet, writes into the stage's own log, keeps its own clock, and
puts its job back into the queue when it has saved itself. It never returns to submitit: no result is written, so none
can be read that an earlier run of the job left behind.

Nothing heavy is imported before the handlers are set: a signal in the first seconds would otherwise be submitit's.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kdscale.jobs.slurm.place import job_id, meeting_file

__all__ = ["keep_time", "run"]

MEET_WITHIN_S = 300.0
LOOK_EVERY_S = 0.2
PORTS, FIRST_PORT, LAST_PORT = 40, 20000, 60000
SAVING_SHARE, SAVING_MOST_S = 0.1, 60.0
"""Of a job's time, what is kept for saving before its end."""


def run(root: str, digest: str) -> NoReturn:
    """Run this task's share of a stage, and end the process."""
    early: list[str] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, frame: _note(early, number, frame))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    rank, world = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    from kdscale.data.download import forbid_downloads
    from kdscale.jobs.slurm.parents import may_begin
    from kdscale.pipeline.artifacts import Root

    forbid_downloads()
    folder = Root.find(Path(root)).stage(digest)
    if folder is None:
        raise SystemExit(f"no stage {digest[:12]} under {root}: was it removed after the job was submitted?")
    if not may_begin(Root.find(Path(root)), folder, write=rank == 0):
        os._exit(0)
    meeting = meeting_file(folder.logs, job_id())
    place = _call_in(meeting, folder, world) if rank == 0 else _wait_for(meeting)
    os.environ.update(
        {
            "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
            "LOCAL_WORLD_SIZE": os.environ.get("SLURM_NTASKS_PER_NODE", str(world)),
            "MASTER_ADDR": place["host"], "MASTER_PORT": str(place["port"]), "KDSCALE_ATTEMPT": str(place["attempt"]),
        }
    )  # fmt: skip
    _write_to(folder.logs / f"attempt{place['attempt']}-rank{rank}.log")
    code = Path(__file__).parents[3]
    print(f"job {job_id()}, rank {rank} of {world} on {socket.gethostname()}, code {code}", flush=True)  # noqa: T201
    from kdscale.jobs.shipping import ship_the_end, shipper_of_job
    from kdscale.jobs.slurm.ending import last_word
    from kdscale.jobs.stage_job import main

    shipper = shipper_of_job(Path(root), folder, rank)
    main(
        Path(root), digest,
        watch=lambda stop: _watch(stop, early),
        last=lambda code: ship_the_end(shipper, code, last_word(code, folder, rank)),
    )  # fmt: skip


def _note(early: list[str], number: int, frame: FrameType | None) -> None:
    del frame
    early.append(f"asked to stop by {signal.Signals(number).name}")


# ------------------------------------------------------------------------------- where ranks meet


def _call_in(meeting: Path, folder: Any, world: int) -> dict[str, Any]:
    """Rank 0: find a free port, and write down where it is and which attempt this is."""
    from kdscale import atomic
    from kdscale.jobs.causes import forget_causes

    attempt = len(folder.state()["attempts"]) + 1
    folder.logs.mkdir(parents=True, exist_ok=True)
    for old in folder.logs.glob("meeting-*.json"):
        old.unlink(missing_ok=True)
    forget_causes(folder.path, attempt, world)
    place = {"host": socket.gethostname(), "port": _free_port(), "attempt": attempt, "world": world}
    atomic.write_json(meeting, place)
    return place


def _wait_for(meeting: Path) -> dict[str, Any]:
    from kdscale import atomic

    deadline = time.monotonic() + MEET_WITHIN_S
    while time.monotonic() < deadline:
        found: dict[str, Any] | None = atomic.read_json(meeting)
        if found is not None:
            return found
        os.listdir(meeting.parent)  # a shared file system may believe for a while that the file is not there
        time.sleep(LOOK_EVERY_S)
    raise SystemExit(f"rank 0 has not said within {MEET_WITHIN_S:.0f} s where to meet ({meeting})")


def _free_port() -> int:
    """A port that follows from the job, so that two jobs of a node seldom try the same; the next one if it is taken."""
    for number in range(PORTS):
        port = FIRST_PORT + zlib.crc32(f"{job_id()}:{number}".encode()) % (LAST_PORT - FIRST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"none of {PORTS} ports tried on {socket.gethostname()} is free")


def _write_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)


# ------------------------------------------------------------------------------- when to stop


def _watch(stop: Any, early: list[str]) -> None:
    """Pass on what was asked before anybody listened, and watch the clock."""
    if early:
        stop.ask(early[0])
    keep_time(stop)


def keep_time(stop: Any) -> None:
    """Ask for a stop, from a thread, when the job's end is near."""
    end = _ends_at()
    if end is not None:
        threading.Thread(target=_keep_time, args=(stop, end), name="job's clock", daemon=True).start()


def _keep_time(stop: Any, end: float) -> None:
    begun = time.time()
    margin = min(SAVING_MOST_S, SAVING_SHARE * max(0.0, end - begun))
    while (left := end - margin - time.time()) > 0:
        time.sleep(min(left, 30.0))
    stop.ask("its time limit is near")


def _ends_at() -> float | None:
    """When SLURM will end this job, unix time; None when it has no limit or nobody says."""
    known = os.environ.get("SLURM_JOB_END_TIME", "")
    if known.isdigit():
        return float(known)
    from kdscale.errors import SubmissionError
    from kdscale.jobs.slurm.queue import ask

    try:
        said = ask("squeue", "--noheader", f"--jobs={job_id()}", "--format=%e").strip()
        return time.mktime(time.strptime(said, "%Y-%m-%dT%H:%M:%S"))
    except (SubmissionError, ValueError):
        return None
