"""A sweep's own bounds (`limits`) where it runs as jobs: tasks of an array at once, and GPU hours in all."""

from __future__ import annotations

from kdscale.errors import ConfigError
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.sbatch import Layout
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["within_limits"]


def within_limits(profile: Profile, plan: Plan) -> Profile:
    """A site's profile, narrowed to what the sweep allows itself.

    Raises:
        ConfigError: what is to be submitted may take more GPU hours than `limits.gpu_hours`.
    """
    most = plan.limits.get("gpu_hours")
    if most is not None and (hours := sum(_gpu_hours(stage) for stage in plan.todo)) > most:
        raise ConfigError(
            f"limits.gpu_hours: {most:g}, and this sweep may take {hours:,.1f}, which is {hours - most:,.1f} more: "
            f"{len(plan.todo)} stages, each for as long as its resources.time_min lets it. Raise it, lower time_min, "
            "or take trials out"
        )
    known = [count for count in (profile.array_parallel, plan.limits.get("parallel")) if count is not None]
    return profile.model_copy(update={"array_parallel": min(known)}) if known else profile


def _gpu_hours(stage: PlannedStage) -> float:
    """At most, of one run; stages that share a job share its GPUs."""
    has = Layout(stage)
    return has.gpus * has.nodes * has.asked.time_min / 60 / has.asked.pack
