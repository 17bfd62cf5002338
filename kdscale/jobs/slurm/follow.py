"""Stay beside a submitted sweep: show it, write down what jobs could not, and submit again what was lost.

Whoever follows may leave at any time (Ctrl-C): jobs need nobody beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kdscale.errors import SubmissionError
from kdscale.jobs.prepare import note_state
from kdscale.jobs.slurm.ending import settle
from kdscale.jobs.slurm.queue import QueuedJob, cancel_jobs, queued_jobs
from kdscale.jobs.slurm.submit import NOT_AGAIN, Submission, jobs_of_stages
from kdscale.pipeline.artifacts import UNDER_WAY, StageFolder
from kdscale.pipeline.planned import PlannedStage

__all__ = ["Follower"]

TICK_S = 0.5
SLOWEST_POLL_S = 120.0
WITHOUT_PROGRESS = 3


@dataclass
class Follower:
    """Looks after one sweep's jobs."""

    submission: Submission
    stopped: bool = False
    states: dict[str, str] = field(default_factory=dict)
    _step_then: dict[str, int] = field(default_factory=dict)
    _futile: dict[str, int] = field(default_factory=dict)

    def leave(self) -> None:
        """Ctrl-C: stop looking; the jobs go on."""
        self.stopped = True

    def run(self, on_tick: Callable[[], None]) -> dict[str, str]:
        """Follow until every stage rests; returns their states by digest. Raises: SubmissionError."""
        poll_s, next_poll = self.submission.profile.poll_s, 0.0
        while not self.stopped and not self._over():
            if time.monotonic() >= next_poll:
                try:
                    self.look_after()
                    poll_s = self.submission.profile.poll_s
                except SubmissionError as error:  # the scheduler is busy: ask less often, the jobs go on
                    poll_s = min(2 * poll_s, SLOWEST_POLL_S)
                    self.submission.say(f"{error}; asking again in {poll_s:.0f} s")
                next_poll = time.monotonic() + poll_s
            on_tick()
            time.sleep(TICK_S)
        return self._read_states()

    def look_after(self) -> None:
        """One look: set right what ended without a word, and submit what should be queued and is not."""
        queue = queued_jobs()
        jobs = jobs_of_stages(self.submission.root)
        self._withdraw(queue, jobs)
        gone = [s for s in self.submission.plan.todo if s.digest in jobs and jobs[s.digest] not in queue]
        for stage in gone:
            self._reconcile(stage, jobs[stage.digest])
        self._block()
        self.submission.submit()

    def _reconcile(self, stage: PlannedStage, job: str) -> None:
        """A stage whose job is gone, and that does not rest: what its ranks wrote tells why, else it was lost."""
        folder = self._folder(stage)
        state = folder.state()
        if state["state"] == "done" or state["state"] in NOT_AGAIN or folder.claimant() is not None:
            return
        folder.reconcile()
        if folder.cancel_request() is not None:
            note_state(folder, "cancelled", "cancelled by its user")
            return
        attempts = state["attempts"]
        world = int(attempts[-1]["world"]) if attempts else 1
        if attempts and state["state"] in UNDER_WAY and settle(folder, len(attempts), world) is not None:
            return
        step = int(folder.state()["step"])
        further = step > self._step_then.get(stage.digest, -1)
        self._step_then[stage.digest] = step
        self._futile[stage.digest] = 0 if further else self._futile.get(stage.digest, 0) + 1
        if self._futile[stage.digest] >= WITHOUT_PROGRESS:
            note_state(folder, "paused", f"its jobs ended {WITHOUT_PROGRESS} times without getting further (job {job})")
            return
        note_state(folder, "interrupted", f"job {job} is gone; going on from step {step}")

    def _withdraw(self, queue: dict[str, QueuedJob], jobs: dict[str, str]) -> None:
        """Take out jobs that wait for what can no longer happen, where SLURM does not do so itself."""
        ours = set(jobs.values())
        cancel_jobs([job.id for job in queue.values() if job.never and job.id in ours])

    def _block(self) -> None:
        """What takes from a stage that failed does not run."""
        plan = self.submission.plan
        states = self._read_states()
        for stage in plan.todo:
            bad = [p for p, _ in stage.parents.values() if states.get(p) in ("failed", "blocked", "cancelled")]
            if bad and states[stage.digest] not in ("done", "blocked", "running"):
                note_state(
                    self._folder(stage), "blocked", f"{', '.join(plan.stages[p].name for p in bad)} did not finish"
                )
                states[stage.digest] = "blocked"

    def _over(self) -> bool:
        states = self._read_states()
        return all(
            state == "done" or state in NOT_AGAIN or self._waits_for_paused(d, states) for d, state in states.items()
        )

    def _waits_for_paused(self, digest: str, states: dict[str, str]) -> bool:
        """A stage below one that waits for its user waits too."""
        parents = [parent for parent, _ in self.submission.plan.stages[digest].parents.values()]
        return any(states[p] == "paused" or self._waits_for_paused(p, states) for p in parents if states[p] != "done")

    def _read_states(self) -> dict[str, str]:
        plan = self.submission.plan
        self.states = {
            d: "done" if s.reuse.done else str(self._folder(s).state()["state"]) for d, s in plan.stages.items()
        }
        return self.states

    def _folder(self, stage: PlannedStage) -> StageFolder:
        folder = self.submission.root.stage(stage.digest)
        assert folder is not None
        return folder
