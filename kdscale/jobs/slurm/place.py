"""What a job knows of itself from its environment, and where its ranks meet."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["job_id", "meeting_file"]


def job_id() -> str:
    """This job as squeue prints it: 123, or 123_4."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "0")


def meeting_file(logs: Path, job: str) -> Path:
    """Where rank 0 of this run of a job says where the others find it: a requeued job meets anew."""
    return logs / f"meeting-{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"
