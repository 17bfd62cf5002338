"""What the scheduler says of the stages of a sweep, asked as seldom as a scheduler should be."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from kdscale.errors import SubmissionError
from kdscale.jobs.slurm.notes import jobs_of_stages
from kdscale.jobs.slurm.queue import QueuedJob, maintenance_begins, queued_jobs
from kdscale.jobs.slurm.reasons import MAINTENANCE, in_words, maintenance_words
from kdscale.pipeline.artifacts import Root

__all__ = ["QueueLook", "job_ranges"]

ASK_EVERY_S = 10.0
"""Between two questions to the scheduler, however often a screen is drawn."""


@dataclass
class QueueLook:
    """The jobs of a sweep's stages, as they were when the scheduler was last asked: one squeue for all."""

    root: Root
    jobs: dict[str, str] = field(default_factory=dict)
    """The job that each stage was last submitted as."""
    problem: str = ""
    """Why the scheduler could not be asked."""
    asked: float = 0.0
    """When, unix time; 0 when there was nothing to ask."""
    _queue: dict[str, QueuedJob] = field(default_factory=dict)
    _maintenance: float | None = None
    _next: float = 0.0
    _stamp: int = -1

    def refresh(self, unfinished: Collection[str]) -> None:
        """Look again, unless that was done a moment ago or none of these stages is a job."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + ASK_EVERY_S
        self._read_notes()
        if not any(digest in self.jobs for digest in unfinished):
            return
        now = time.time()
        try:
            self._queue, self.problem = queued_jobs(), ""
        except SubmissionError as error:
            self._queue, self.problem = {}, str(error)
            return
        self.asked = now
        own = {self.jobs[digest] for digest in unfinished if digest in self.jobs}
        waits = any(in_words(job.reason) == MAINTENANCE for name, job in self._queue.items() if name in own)
        self._maintenance = _maintenance() if waits else None

    def job(self, digest: str) -> QueuedJob | None:
        """The stage's job, where the scheduler has it."""
        return self._queue.get(self.jobs.get(digest, ""))

    def gone(self, digest: str, updated: float) -> bool:
        """Whether the stage was a job that the scheduler no longer has.

        Args:
            digest: of the stage.
            updated: when its state was written: what is newer than the answer was not asked for.
        """
        return bool(self.asked and not self.problem and digest in self.jobs) and (
            self.job(digest) is None and updated < self.asked
        )

    def waits_for(self, job: QueuedJob) -> str:
        """What a job waits for, in plain words."""
        words = in_words(job.reason)
        if words == MAINTENANCE and self._maintenance is not None:
            return maintenance_words(self._maintenance, self.asked)
        return words

    def _read_notes(self) -> None:
        try:
            stamp = (self.root.path / "jobs").stat().st_mtime_ns
        except FileNotFoundError:
            return
        if stamp != self._stamp:
            self.jobs, self._stamp = jobs_of_stages(self.root), stamp


def job_ranges(jobs: Sequence[str]) -> str:
    """Jobs as SLURM's commands take them: 12,13_[0-4,7]."""
    arrays: dict[str, list[int]] = {}
    for job in jobs:
        array, _, task = job.partition("_")
        arrays.setdefault(array, []).extend([int(task)] if re.fullmatch(r"\d+", task) else [])
    return ",".join(f"{array}_[{_ranges(sorted(tasks))}]" if tasks else array for array, tasks in arrays.items())


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _maintenance() -> float | None:
    try:
        return maintenance_begins()
    except SubmissionError:  # it is only the hour that remains unsaid
        return None
