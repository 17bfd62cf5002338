"""What a stage's jobs wrote themselves, around the logs of its ranks: the output of sbatch and srun."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdscale.jobs.slurm.notes import submissions
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["JobOutput", "job_of", "job_outputs"]


class JobOutput(NamedTuple):
    """The output of one task of one job."""

    job: str
    task: int
    path: Path


def job_of(folder: StageFolder) -> str | None:
    """The job that a stage was last submitted as; None where it was none."""
    return next(reversed(_jobs(folder)), None)


def job_outputs(folder: StageFolder) -> list[JobOutput]:
    """All that a stage's jobs wrote, the newest job last, by task."""
    found = [output for job in dict.fromkeys(_jobs(folder)) for output in sorted(_outputs(folder, job))]
    return [output for output in found if output.path.stat().st_size]


def _jobs(folder: StageFolder) -> list[str]:
    known = submissions(Root(folder.path.parent.parent))
    return [str(note["job"]) for note in known if note["digest"].startswith(folder.digest12)]


def _outputs(folder: StageFolder, job: str) -> Iterator[JobOutput]:
    """Submitit puts the output of an array's tasks into the array's folder."""
    place = folder.path.parent.parent / "jobs" / "slurm" / job.partition("_")[0]
    for path in place.glob(f"{job}_*_log.out"):
        match = re.fullmatch(rf"{job}_(\d+)_log\.out", path.name)
        if match:
            yield JobOutput(job, int(match[1]), path)
