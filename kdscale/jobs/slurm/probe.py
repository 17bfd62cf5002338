"""Send a job of one minute to the nodes, and tell what it saw: sweep.py --prepare and doctor.py --cluster ask it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdscale import atomic
from kdscale.config.sections import ResourcesConfig
from kdscale.doctor.findings import Finding
from kdscale.errors import SubmissionError
from kdscale.jobs.slurm.groups import Group
from kdscale.jobs.slurm.node import SHARED, look_around
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.queue import queued_jobs
from kdscale.jobs.slurm.sbatch import hand_in, parameters
from kdscale.pipeline.claims import locked
from kdscale.pipeline.cost import Cost
from kdscale.pipeline.planned import PlannedStage

__all__ = ["Probe", "Sight"]

LOCK_S = 600.0
LOOK_EVERY_S = 0.3
LATE_S = 15.0
"""How long a file may take from a node to the login node."""
TIME_MIN = 1


@dataclass(frozen=True)
class Sight:
    """What one probe saw."""

    job: str
    node: str
    findings: list[Finding]


@dataclass
class Probe:
    """One kind of node that is asked what it sees."""

    root: Path
    profile: Profile
    code: Path
    """The snapshot that jobs run."""
    partition: str | None
    gpus: int
    """GPUs that the job asks for: some partitions take no others."""
    wanted: Mapping[str, Any]
    """What to look for, as jobs/slurm/node.py reads it."""
    job: str = ""

    @property
    def asked(self) -> Path:
        """Named by its content: the same question has one job in the queue."""
        own = [self.partition, self.gpus, str(self.code), self.wanted]
        name = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]
        return self.root / "jobs" / "probe" / f"{name}.asked.json"

    @property
    def answer(self) -> Path:
        return self.asked.with_name(self.asked.name.replace(".asked.", "."))

    def submit(self) -> bool:
        """Submit it, unless it is in the queue already; returns whether it was. Raises: SubmissionError."""
        self.asked.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.root / "jobs" / ".lock", LOCK_S):
            before = atomic.read_json(self.asked)
            if before is not None and before["job"] in queued_jobs():
                self.job = str(before["job"])
                return False
            self.answer.unlink(missing_ok=True)
            atomic.write_json(self.asked, {**self.wanted, "job": ""})
            self.job = self._sbatch()
            atomic.write_json(self.asked, {**self.wanted, "job": self.job})
        return True

    def wait(self, say: Callable[[str], None]) -> Sight:
        """Wait until it has answered, or is gone. Raises: SubmissionError where the scheduler does not answer."""
        next_poll, gone_since, state = 0.0, None, ""
        while True:
            found = atomic.read_json(self.answer)
            if found is not None and found["complete"]:
                return self._sight(found)
            now = time.monotonic()
            if gone_since is not None and now - gone_since > LATE_S:
                return self._without_end(found)
            if gone_since is None and now >= next_poll:
                job = queued_jobs().get(self.job)
                gone_since, next_poll = (now if job is None else None), now + self.profile.poll_s
                told = f"pending ({job.reason})" if job and job.reason not in ("None", "") else ""
                if told and told != state:
                    say(f"probe job {self.job}: {told}; Ctrl-C leaves it, the same command comes back to it")
                    state = told
            time.sleep(LOOK_EVERY_S)

    def _sbatch(self) -> str:
        asks = ResourcesConfig(time_min=TIME_MIN, gpus_per_process=self.gpus, partition=self.partition)
        like = PlannedStage(
            "", "probe", "convert", {}, 0, "", Cost(), {"spec": {"resources": asks.model_dump(exclude_defaults=True)}}
        )
        given = parameters(
            Group([like]), self.profile, name="kdscale-probe", waits_for=None, code=self.code, root=self.root
        )
        logs = self.root / "jobs" / "slurm" / "%j"
        try:
            return hand_in(given | {"time": TIME_MIN}, logs, [partial(look_around, str(self.asked))])[0]
        except SubmissionError as error:
            raise SubmissionError(f"probe: {error}") from None

    def _sight(self, found: Mapping[str, Any]) -> Sight:
        return Sight(self.job, str(found["node"]), [Finding(**finding) for finding in found["findings"]])

    def _without_end(self, found: Mapping[str, Any] | None) -> Sight:
        """Its job is over, or was taken away, and it has not said all."""
        output = self.root / "jobs" / "slurm" / self.job
        if found is None:
            text = f"probe job {self.job} ended without a word"
            mend = f"does every node see {self.root}? {SHARED}. Its output, if any, is in {output}"
            return Sight(self.job, "", [Finding("node", "runs", "broken", text, mend, needed=True)])
        sight = self._sight(found)
        text = f"probe job {self.job} ended before it was through: is starting Python slow there? ({output})"
        return Sight(self.job, sight.node, [*sight.findings, Finding("node", "time", "note", text)])
