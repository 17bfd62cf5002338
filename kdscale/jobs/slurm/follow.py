"""Stay beside a submitted sweep: show it, write down what jobs could not, and submit again what was lost.

Whoever follows may leave at any time (Ctrl-C): jobs need nobody beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from kdscale.errors import SubmissionError
from kdscale.jobs.causes import causes_of
from kdscale.jobs.prepare import note_cancelled, note_state
from kdscale.jobs.retries import judge
from kdscale.jobs.slurm.notes import jobs_of_stages
from kdscale.jobs.slurm.queue import Queue, cancel_jobs, look
from kdscale.jobs.slurm.submit import NOT_AGAIN, Submission
from kdscale.pipeline.artifacts import UNDER_WAY, StageFolder
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["Follower"]

TICK_S = 0.5
LOOK_EVERY_S = 2.0
SLOWEST_POLL_S = 120.0


@dataclass
class Follower:
    """Looks after one sweep's jobs."""

    submission: Submission
    stopped: bool = False
    states: dict[str, str] = field(default_factory=dict)
    _read: dict[str, tuple[tuple[int, int], str]] = field(default_factory=dict)
    """State of each stage as last read, and by what its file is known to be the same: there may be thousands."""

    def leave(self) -> None:
        """Ctrl-C: stop looking; the jobs go on."""
        self.stopped = True

    def extend(self, plan: Plan, fresh: Collection[str]) -> None:
        """Go on with a plan that has grown by the stages `fresh`: they are submitted now, or at a later look."""
        del fresh
        self.submission.plan = plan
        try:
            self.submission.submit()
        except SubmissionError as error:
            self.submission.say(f"{error}; submitted again at the next look")

    def run(self, on_tick: Callable[[], None]) -> dict[str, str]:
        """Follow until every stage rests; returns their states by digest."""
        poll_s = self.submission.profile.poll_s
        next_poll = time.monotonic() + poll_s  # the submission has just asked
        next_look, over = 0.0, False
        while not self.stopped and not over:
            if time.monotonic() >= next_poll:
                try:
                    self.look_after()
                    poll_s = self.submission.profile.poll_s
                except SubmissionError as error:  # the scheduler is busy: ask less often, the jobs go on
                    poll_s = min(2 * poll_s, SLOWEST_POLL_S)
                    self.submission.say(f"{error}; asking again in {poll_s:.0f} s")
                next_poll = time.monotonic() + poll_s
            on_tick()
            if time.monotonic() >= next_look:
                over, next_look = self._over(), time.monotonic() + LOOK_EVERY_S
            time.sleep(0.0 if over else TICK_S)
        return self._read_states()

    def look_after(self) -> None:
        """One look: set right what ended without a word, and submit what should be queued and is not.

        Raises:
            SubmissionError: the scheduler does not answer, or refuses.
        """
        jobs = jobs_of_stages(self.submission.root)  # before the queue: what others submit meanwhile is in neither
        queue = look()
        ours = set(jobs.values())
        # where SLURM does not take out by itself what waits for what can no longer happen
        never = {job.id for job in queue.jobs.values() if job.never and job.id in ours}
        cancel_jobs(sorted(never))
        for stage in self.submission.plan.todo:
            if stage.digest in jobs and jobs[stage.digest] not in queue.jobs:
                self._reconcile(stage, jobs, queue)
        self._block()
        if self.submission.wanted({digest for digest, job in jobs.items() if job in queue.jobs.keys() - never}):
            self.submission.submit()

    def _reconcile(self, stage: PlannedStage, jobs: Mapping[str, str], queue: Queue) -> None:
        """A stage whose job is gone, and that does not rest: what its ranks wrote tells why, else it was lost."""
        job = jobs[stage.digest]
        folder = self._folder(stage)
        state = folder.state()
        if state["state"] in ("done", *NOT_AGAIN) or folder.claimant() is not None:
            return
        folder.reconcile()
        if folder.cancel_request() is not None:
            note_cancelled(folder)
        elif queue.ended.get(job) == "CANCELLED" and self._had_what_it_waits_for(stage, jobs, queue):
            note_state(
                folder, "cancelled", f"job {job} was cancelled (scancel); give the same command to go on with it"
            )
        elif state["state"] in UNDER_WAY or (state["state"] == "queued" and self._has_what_it_needs(stage)):
            self._judge(folder, job, queue)

    def _judge(self, folder: StageFolder, job: str, queue: Queue) -> None:
        state = folder.state()
        attempts = state["attempts"]
        world = int(attempts[-1]["world"]) if attempts else 0
        how = queue.ended.get(job, "gone from the queue").lower().replace("_", " ")
        verdict = judge(
            folder, causes_of(folder.path, len(attempts), world), how=f"job {job}: {how}",
            waits_s=[60 * minutes for minutes in self.submission.profile.retry_after_min],
        )  # fmt: skip
        note_state(folder, verdict.state, verdict.reason)
        self.submission.say(f"{folder.path.name} {verdict.state}: {verdict.reason}")

    def _has_what_it_needs(self, stage: PlannedStage) -> bool:
        """Whether all that it takes from is done: else SLURM itself took its job out."""
        plan = self.submission.plan
        return all(self._state(plan.stages[parent]) == "done" for parent, _ in stage.parents.values())

    def _had_what_it_waits_for(self, stage: PlannedStage, jobs: Mapping[str, str], queue: Queue) -> bool:
        """Whether SLURM had no reason of its own to take a waiting job out: its parents are done, or may yet be."""
        plan = self.submission.plan
        parents = [parent for parent, _ in stage.parents.values()]
        return all(self._state(plan.stages[p]) == "done" or jobs.get(p) in queue.jobs for p in parents)

    def _block(self) -> None:
        """What takes from a stage that failed does not run."""
        plan = self.submission.plan
        states = self._read_states()
        for stage in plan.todo:
            bad = [p for p, _ in stage.parents.values() if states.get(p) in ("failed", "blocked", "cancelled")]
            if bad and states[stage.digest] not in ("done", "blocked", "running", "cancelled"):
                names = ", ".join(plan.stages[p].name for p in bad)
                note_state(self._folder(stage), "blocked", f"{names} did not finish")
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
        self.states = {digest: self._state(stage) for digest, stage in self.submission.plan.stages.items()}
        return self.states

    def _state(self, stage: PlannedStage) -> str:
        stamp, state = self._read.get(stage.digest, ((0, 0), ""))
        if stage.reuse.done or state == "done":
            return "done"
        folder = self._folder(stage)
        try:
            found = (folder.path / "state.json").stat()
        except FileNotFoundError:
            return "waiting"
        now = (found.st_mtime_ns, found.st_ino)
        if now != stamp:
            state = str(folder.state()["state"])
            self._read[stage.digest] = now, state
        return state

    def _folder(self, stage: PlannedStage) -> StageFolder:
        folder = self.submission.root.stage(stage.digest)
        assert folder is not None
        return folder
