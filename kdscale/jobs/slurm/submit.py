"""Hand a plan to SLURM: each stage once, whoever asks, and again only when its job is gone.

    plan -> stages neither done nor queued -> arrays -> sbatch, through submitit -> runs/jobs/<id>.json

Everything happens under one lock of the run root, after one question to the scheduler: two launchers at once, or the
same command twice, submit each stage once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.errors import SubmissionError
from kdscale.jobs.prepare import note_state
from kdscale.jobs.retries import excluded_nodes, not_before
from kdscale.jobs.slurm.groups import Again, Group, Task, dependency, groups
from kdscale.jobs.slurm.notes import jobs_of_stages
from kdscale.jobs.slurm.pack import run_pack
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.queue import QueuedJob, array_limit, cancel_jobs, queued_jobs
from kdscale.jobs.slurm.sbatch import QUEUE_IS_FULL, Layout, hand_in, parameters, text
from kdscale.jobs.slurm.snapshot import take_snapshot
from kdscale.jobs.slurm.worker import run
from kdscale.pipeline.artifacts import Root, StageFolder
from kdscale.pipeline.claims import locked
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["CLUSTER_FILE", "NOT_AGAIN", "Submission", "scripts", "withdraw"]

NOT_AGAIN = frozenset({"failed", "cancelled", "blocked", "paused"})
"""States in which a stage waits for its user, not for a job."""
LOCK_S = 600.0
CLUSTER_FILE = "cluster.json"
"""In a sweep's folder: the profile that its jobs were submitted with."""


@dataclass
class Submission:
    """Submits a plan's stages, and knows which job each of them is."""

    root: Root
    plan: Plan
    profile: Profile
    say: Callable[[str], None]
    full: bool = False
    """Whether the site took no more at the last submission; said once, not at every look."""

    def submit(self) -> int:
        """Submit what is neither done nor queued; returns how many stages that were.

        What is more than the site allows at once waits, and is submitted when this is called again.

        Raises:
            SubmissionError: the scheduler refused, or does not answer; what was submitted before that stays.
        """
        folder = self.root.path / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", LOCK_S):
            queued = queued_jobs()
            jobs = {d: job for d, job in jobs_of_stages(self.root).items() if job in queued and not queued[job].never}
            wanted = self.wanted(jobs)
            if not wanted:
                return 0
            done = frozenset(d for d, s in self.plan.stages.items() if s.reuse.done or self._state(s) == "done")
            code = take_snapshot(self.root.path, self.plan)
            sweep = self.root.path / "sweeps" / self.plan.folder_name
            atomic.write_json(sweep / CLUSTER_FILE, {"schema": 1, "profile": self.profile.model_dump()})
            limit = array_limit()
            most = min(self.profile.array_size or limit, limit)
            for group in groups(self.plan, wanted, done, most, again=self._again(wanted)):
                if self._may_run(group, jobs, done) and not self._submit_what_may(group, jobs, code):
                    break
            return sum(stage.digest in jobs for stage in wanted)

    def wanted(self, jobs: Collection[str]) -> list[PlannedStage]:
        """Stages to be submitted, given the digests of those that are jobs already."""
        return [s for s in self.plan.todo if s.digest not in jobs and self._state(s) not in {"done", *NOT_AGAIN}]

    def _again(self, wanted: Sequence[PlannedStage]) -> dict[str, Again]:
        """What stages that failed in passing have to wait for, and where they are not to run."""
        found = {}
        for stage in wanted:
            folder = self.root.stage(stage.digest)
            if folder is not None and folder.state()["state"] == "interrupted":
                found[stage.digest] = Again(max(0.0, not_before(folder) - time.time()), tuple(excluded_nodes(folder)))
        return found

    def _submit_what_may(self, group: Group, jobs: dict[str, str], code: Path) -> bool:
        """Submit a group, or of an array as many tasks as the site still takes; returns whether that was all."""
        try:
            self._submit(group, jobs, code)
        except SubmissionError as error:
            if not QUEUE_IS_FULL.search(str(error)):
                raise
            half, rest = group.halves()
            if half is not None:
                return self._submit_what_may(half, jobs, code) and self._submit_what_may(rest, jobs, code)
            if not self.full:
                self.say(
                    f"{error}: the queue is full for now. The rest is submitted as jobs end, while this command runs, "
                    "when it is given again, or by `launch/status.py --heal` (from cron, say)"
                )
            self.full = True
            return False
        self.full = False
        return True

    def _may_run(self, group: Group, jobs: Mapping[str, str], done: frozenset[str]) -> bool:
        """Not where a parent waits for its user."""
        return all(parent in jobs or parent in done for parents in group.parents for parent in parents)

    def _submit(self, group: Group, jobs: dict[str, str], code: Path) -> None:
        group.order_as(jobs)
        first, logs = group.stages[0], self.root.path / "jobs" / "slurm" / "%j"
        waits_for = dependency(group, jobs)
        given = parameters(
            group, self.profile, name=f"{self.plan.name}:{first.name}", waits_for=waits_for, code=code,
            root=self.root.path,
        )  # fmt: skip
        before = self._call_queued(group)
        try:
            made = hand_in(given, logs, [self._call(group, task) for task in group.tasks])
        except SubmissionError as error:
            for folder, state in before:
                note_state(folder, state["state"], state["reason"])
            raise SubmissionError(f"{first.name}: {error}") from None
        ids = {stage.digest: job for task, job in zip(group.tasks, made, strict=True) for stage in task.stages}
        jobs |= ids
        self._note(group, ids, waits_for)
        names = ", ".join(dict.fromkeys(stage.name for stage in group.stages))
        tasks = f" x {len(group.stages)}" if len(group.stages) > 1 else ""
        tasks += f", {group.pack} a job," if len(made) < len(group.stages) else ""
        after = f", {waits_for}" if waits_for else ""
        self.say(f"submitted {names}{tasks} as job {jobs[first.digest].partition('_')[0]}{after}")

    def _call(self, group: Group, task: Task) -> Callable[[], Any]:
        """What submitit calls in each process of a task."""
        root = str(self.root.path)
        if group.pack == 1 or len(group.stages) == 1:
            return partial(run, root, task.stages[0].digest)
        return partial(run_pack, root, [stage.digest for stage in task.stages], Layout(task.stages[0]).cpus)

    def _note(self, group: Group, jobs: Mapping[str, str], waits_for: str | None) -> None:
        """One file for all of an array: what is submitted and not noted would be submitted twice."""
        number = next(iter(jobs.values())).partition("_")[0]
        tasks = [{"job": jobs[stage.digest], "digest": stage.digest, "stage": stage.name} for stage in group.stages]
        note = {
            "schema": 1, "job": number, "sweep": self.plan.folder_name, "submitted": time.time(),
            "waits_for": waits_for, "tasks": tasks,
        }  # fmt: skip
        atomic.write_json(self.root.path / "jobs" / f"{number}.json", note)

    def _call_queued(self, group: Group) -> list[tuple[StageFolder, dict[str, Any]]]:
        """Before they are, because afterwards a first task may be over; returns what they were."""
        before = []
        for stage in group.stages:
            folder = self.root.stage(stage.digest)
            assert folder is not None
            before.append((folder, folder.state()))
            note_state(folder, "queued", "")
        return before

    def _state(self, stage: PlannedStage) -> str:
        folder = self.root.stage(stage.digest)
        return str(folder.state()["state"]) if folder is not None else "waiting"


def withdraw(root: Root, digests: Collection[str]) -> dict[str, QueuedJob]:
    """Take the jobs of stages out of the queue that do not run yet.

    A job that others share stays: it runs those, and sees what has become of these.

    Returns:
        The job of each stage that had one to itself, as it was: what was PENDING is out of the queue.

    Raises:
        SubmissionError: the scheduler does not answer.
    """
    known = jobs_of_stages(root)
    jobs = {digest: job for digest, job in known.items() if digest in digests}
    shared = {job for digest, job in known.items() if digest not in digests and not _rests(root, digest)}
    queue = queued_jobs() if jobs else {}
    found = {digest: queue[job] for digest, job in jobs.items() if job in queue and job not in shared}
    cancel_jobs([job.id for job in found.values() if job.state == "PENDING"])
    return found


def _rests(root: Root, digest: str) -> bool:
    folder = root.stage(digest)
    return folder is None or folder.state()["state"] in {"done", *NOT_AGAIN}


def scripts(root: Root, plan: Plan, profile: Profile) -> list[str]:
    """The scripts that sbatch would get, one for each array, with names in place of the jobs waited for."""
    done = frozenset(digest for digest, stage in plan.stages.items() if stage.reuse.done)
    names: dict[str, str] = {}
    made = []
    for number, group in enumerate(groups(plan, plan.todo, done, profile.array_size or 1000), 1):
        group.order_as(names)
        tasks, waits_for = group.tasks, dependency(group, names)
        for index, task in enumerate(tasks):
            job = f"JOB{number}" if len(tasks) == 1 else f"JOB{number}_{index}"
            names |= dict.fromkeys([stage.digest for stage in task.stages], job)
        given = parameters(
            group, profile, name=f"{plan.name}:{group.stages[0].name}", waits_for=waits_for,
            code=root.path / "code" / "SNAPSHOT", root=root.path,
        )  # fmt: skip
        listed = "\n".join(f"#   {names[stage.digest]}  {stage.name}-{stage.digest[:12]}" for stage in group.stages)
        made.append(f"{text(given, len(tasks), root.path / 'jobs' / 'slurm' / '%j')}\n{listed}\n")
    return made
