"""Run a plan on this machine: each stage over its own processes, parents before children.

A stage whose worker dies without a word is started again from its checkpoint as long as it gets further
each time; one that fails by its own error blocks what depends on it, and everything else goes on.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

from kdscale import atomic
from kdscale.jobs.causes import FREE_SPACE, HELD, blamed, causes_of, forget_causes
from kdscale.jobs.gpus import Gpus
from kdscale.jobs.prepare import note_cancelled, note_state, why_cancelled
from kdscale.jobs.retries import judge
from kdscale.jobs.stage_job import CANCELLED, DONE, INTERRUPTED, NO_SPACE
from kdscale.jobs.warm import WarmParent
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.machine import threads_of
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["LocalRun"]

POLL_S = 0.1
GRACE_S = 60.0
FINAL = frozenset({"done", "failed", "cancelled", "paused"})
"""States in which another launcher's stage is not gone on with here."""


@dataclass
class _Running:
    """A stage's live workers."""

    stage: PlannedStage
    folder: StageFolder
    attempt: int
    pids: list[int]
    ended: dict[int, int] = field(default_factory=dict)
    stopping_since: float | None = None


class LocalRun:
    """Works through a plan.

    Args:
        root: the runs root.
        plan: with its folders prepared.
        say: prints one line.
        parallel: stages at once, each with its share of the cores; by default as many as there are cores for.
        warm: the parent of workers.
        threads: of each process; by default what its share of the cores is.
    """

    def __init__(
        self,
        root: Root,
        plan: Plan,
        say: Callable[[str], None],
        *,
        parallel: int | None,
        warm: WarmParent,
        threads: int | None = None,
    ) -> None:
        self._root, self._plan, self._say, self._warm = root, plan, say, warm
        self._cores = len(os.sched_getaffinity(0))
        self._parallel, self._threads = parallel, threads
        self._running: dict[str, _Running] = {}
        self._waiting = {stage.digest: stage for stage in plan.todo}
        self._first, self._gpus = plan.measured_first, Gpus()
        self._not_before: dict[str, float] = {}
        """When a stage that failed in passing runs again, by the monotonic clock."""
        self._others: set[str] = set()
        """Stages that another launcher's workers were seen at."""
        self._stop_signals = 0
        self.states: dict[str, str] = {digest: "done" for digest, s in plan.stages.items() if s.reuse.done}

    def ask_to_stop(self) -> None:
        """Ctrl-C: the first saves and stops all stages, the second ends them at once."""
        self._stop_signals += 1
        number = signal.SIGTERM if self._stop_signals == 1 else signal.SIGKILL
        for running in self._running.values():
            self._signal(running, number)
        if self._stop_signals == 1 and self._running:
            self._say("stopping: each stage saves a checkpoint first (again to end at once)")

    @property
    def stopped(self) -> bool:
        """Whether the user asked for the end."""
        return self._stop_signals > 0

    def workers(self) -> dict[str, list[int]]:
        """Pids of the live workers, by the name of their stage."""
        return {r.stage.name: [p for p in r.pids if p not in r.ended] for r in self._running.values()}

    def run(self, on_tick: Callable[[], None]) -> dict[str, str]:
        """Run to the end; returns each stage's final state by digest."""
        while self._running or (self._waiting and not self.stopped):
            self._collect()
            if not self.stopped:
                self._start_what_can()
                self._adopt_what_others_made()
            on_tick()
            time.sleep(POLL_S)
        for digest in self._waiting:
            self.states.setdefault(digest, "waiting")
        return self.states

    def extend(self, plan: Plan, fresh: Collection[str]) -> None:
        """Go on with a plan that has grown by the stages `fresh`, or wants them again."""
        self._plan, self._first = plan, plan.measured_first
        self.states |= {digest: "done" for digest, stage in plan.stages.items() if stage.reuse.done}
        for digest in [digest for digest in fresh if self.states.get(digest) != "done"]:
            self.states.pop(digest, None)
            self._waiting[digest] = plan.stages[digest]

    # ------------------------------------------------------------------ starting

    def _start_what_can(self) -> None:
        for digest, stage in list(self._waiting.items()):
            parents = [self.states.get(parent) for parent, _ in stage.parents.values()]
            if rests := self._rests_already(stage):
                self._conclude(digest, rests)
            elif any(state in ("failed", "blocked", "cancelled") for state in parents):
                self._block(stage)
            elif any(state in ("paused", "waiting") for state in parents):
                self._conclude(digest, "waiting")  # the same command goes on, once what paused its parent is mended
            elif all(state == "done" for state in parents) and self._may_begin(stage):
                del self._waiting[digest]
                self._start(stage)

    def _rests_already(self, stage: PlannedStage) -> str:
        """The state of a stage that is not to be started: cancelled meanwhile, or failed in an earlier run."""
        folder = self._folder(stage)
        if folder.cancel_request() is not None and not self._held(stage):
            note_cancelled(folder)
            return "cancelled"
        state = folder.state() if stage.reuse.state == "failed" else {}
        if state.get("state") == "failed":
            self._say(f"{stage.name} failed earlier: {state.get('reason')} (--retry-failed)")
            return "failed"
        return ""

    def _block(self, stage: PlannedStage) -> None:
        bad = [self._plan.stages[p].name for p, _ in stage.parents.values() if self.states.get(p) != "done"]
        note_state(self._folder(stage), "blocked", f"{', '.join(bad)} did not finish")
        self._conclude(stage.digest, "blocked")

    def _may_begin(self, stage: PlannedStage) -> bool:
        """Not before networks are measured, during a wait, without free cores, or while another launcher is at it."""
        if time.monotonic() < self._not_before.get(stage.digest, 0.0):
            return False
        unmeasured = self._first & (self._waiting.keys() | self._running.keys())
        turn = not unmeasured or stage.digest in self._first
        return turn and self._room_for(stage) and not self._held(stage)

    def _room_for(self, stage: PlannedStage) -> bool:
        if self._parallel is not None:
            return len(self._running) < self._parallel
        busy = sum(_threads(running.stage) for running in self._running.values())
        return not self._running or busy + _threads(stage) <= self._cores

    def _held(self, stage: PlannedStage) -> bool:
        """Whether another launcher's workers are at it."""
        if self._folder(stage).claimant() is None:
            return False
        self._others.add(stage.digest)
        return True

    def _adopt_what_others_made(self) -> None:
        for digest, stage in list(self._waiting.items()):
            state = str(self._folder(stage).state()["state"])
            if state == "done" or (digest in self._others and state in FINAL and not self._held(stage)):
                self._conclude(digest, state)

    def _start(self, stage: PlannedStage) -> None:
        folder = self._folder(stage)
        attempt = len(folder.state().get("attempts", [])) + 1
        world, port = stage.processes, _free_port()
        forget_causes(folder.path, attempt, world)
        pids, gpus = [], self._gpus.lend(stage.digest, world)
        for rank in range(world):
            environment = gpus | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": str(self._threads or threads_of(world, self._parallel)),
                "KDSCALE_ATTEMPT": str(attempt), "KDSCALE_REUSE": os.pathsep.join(map(str, self._root.reuse)),
            }  # fmt: skip
            log = folder.logs / f"attempt{attempt}-rank{rank}.log"
            pids.append(self._warm.start(self._root.path, stage.digest, environment, log))
        self._running[stage.digest] = _Running(stage, folder, attempt, pids)

    # ------------------------------------------------------------------ ending

    def _collect(self) -> None:
        for digest, running in list(self._running.items()):
            for pid in running.pids:
                code = self._warm.poll(pid) if pid not in running.ended else None
                if code is not None:
                    running.ended[pid] = code
            if len(running.ended) == len(running.pids):
                del self._running[digest]
                self._gpus.take_back(digest)
                self._end(running)
            elif any(code not in (DONE, INTERRUPTED, CANCELLED) for code in running.ended.values()):
                self._give_up_on_the_rest(running)

    def _give_up_on_the_rest(self, running: _Running) -> None:
        """One rank is gone: the others wait for it in a collective and will never notice."""
        if running.stopping_since is None:
            running.stopping_since = time.monotonic()
        elif time.monotonic() - running.stopping_since > 2.0:
            self._signal(running, signal.SIGKILL)

    def _end(self, running: _Running) -> None:
        """Decide what an ended stage is, from its exit codes and what its ranks wrote down."""
        folder, stage, state = running.folder, running.stage, running.folder.state()
        if state.get("state") == "done":
            self._note_end(running, "done")
            self._conclude(stage.digest, "done")
            return
        verdict, reason = self._verdict(running)
        if reason == HELD:
            self._others.add(stage.digest)
            self._waiting[stage.digest] = stage
            return
        self._record(running, verdict, reason)
        if verdict == "interrupted" and not self.stopped:
            self._waiting[stage.digest] = stage  # goes on from its checkpoint
            self._say(f"{stage.name}: {reason}; going on from step {state.get('step', 0)}")
            return
        self._conclude(stage.digest, verdict)
        if verdict in ("failed", "paused"):
            self._say(f"{stage.name} {verdict}: {reason}\n  log: {folder.logs / f'attempt{running.attempt}-rank0.log'}")

    def _verdict(self, running: _Running) -> tuple[str, str]:
        codes = list(running.ended.values())
        if CANCELLED in codes or running.folder.cancel_request():
            return "cancelled", why_cancelled(running.folder)
        causes = causes_of(running.folder.path, running.attempt, len(running.pids))
        cause = blamed(causes)
        if cause is not None and cause["kind"] == HELD:
            return "waiting", HELD
        if cause is None and NO_SPACE in codes:  # not even the cause could be written
            return "paused", f"no space left on device; {FREE_SPACE}"
        if cause is None and (self.stopped or INTERRUPTED in codes):
            return "interrupted", running.folder.state().get("reason") or "stopped by its user"
        verdict = judge(running.folder, causes, how=f"a worker died ({_how(codes)})", waits_s=())
        self._not_before[running.stage.digest] = time.monotonic() + verdict.wait_s
        return verdict.state, verdict.reason

    def _record(self, running: _Running, verdict: str, reason: str) -> None:
        try:
            self._note_end(running, verdict)
            note_state(running.folder, verdict, reason)
        except OSError as error:  # what it says, it says again when the same command finds the stage as it was
            if not atomic.is_disk_full(error):
                raise
            self._say(f"{running.stage.name}: its state cannot be written: {error}")

    def _note_end(self, running: _Running, outcome: str) -> None:
        """Close the attempt; a worker that died before it had the claim has left none."""
        attempts = running.folder.state()["attempts"]
        if attempts and attempts[-1]["attempt"] == running.attempt:
            running.folder.note_attempt(ended=time.time(), outcome=outcome)

    def _conclude(self, digest: str, state: str) -> None:
        self._waiting.pop(digest, None)
        self.states[digest] = state

    def _signal(self, running: _Running, number: int) -> None:
        for pid in running.pids:
            if pid not in running.ended:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _folder(self, stage: PlannedStage) -> StageFolder:
        folder = self._root.stage(stage.digest)
        assert folder is not None
        return folder


def _how(codes: list[int]) -> str:
    killed = [-code for code in codes if code < 0]
    return signal.Signals(killed[0]).name if killed else f"exit code {codes[0]}"


def _threads(stage: PlannedStage) -> int:
    """Of all its processes, where nothing says how many stages run at once."""
    return stage.processes * threads_of(stage.processes)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
