"""What is asked of sbatch, through submitit: one srun task a process, and no torchrun in between."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdscale.config.sections import ResourcesConfig
from kdscale.errors import SubmissionError
from kdscale.jobs.slurm.groups import Group
from kdscale.jobs.slurm.profile import Profile
from kdscale.pipeline.planned import PlannedStage

__all__ = ["Layout", "caches_of_weights", "parameters", "text"]

QUEUE_IS_FULL = re.compile(r"temporarily un|Submit\w*Limit|job queue full", re.IGNORECASE)
"""What sbatch says above MaxJobCount, and above a user's or a QOS's MaxSubmitJobs."""
SHORT_JOBS_KEEP = 0.2
"""Share of its time that a short job keeps for saving itself, where the profile's delay would be more."""

PASSED_ON = ("KDSCALE_REUSE", "KDSCALE_DATA", "XDG_CACHE_HOME")
"""What says where finished stages and data are; a site may start jobs with an environment of their own."""


class Layout:
    """How many tasks a stage's job has, and where; stages that share a job have one task, which starts all processes.

    Args:
        stage: one of those of a job: they ask for the same.
        packed: how many they are.
    """

    def __init__(self, stage: PlannedStage, packed: int = 1) -> None:
        spec = stage.definition["spec"]
        self.asked = ResourcesConfig.model_validate(spec.get("resources", {}))
        self.processes = 1 if stage.kind == "convert" else int(spec["engine"]["processes"])
        self.nodes = 1 if stage.kind == "convert" else self.asked.nodes
        processes = math.ceil(self.processes / self.nodes)
        self.gpus = self.asked.gpus_per_process * processes
        """Of each node; stages side by side are on the same."""
        self.mem_gb = self.asked.mem_gb * packed if self.asked.mem_gb else None
        self.tasks, self.cpus = processes, self.asked.cpus_per_process
        """Of each node, and of each task."""
        if packed > 1:
            self.tasks, self.cpus = 1, packed * processes * self.asked.cpus_per_process


def parameters(
    group: Group, profile: Profile, *, name: str, waits_for: str | None, code: Path, root: Path
) -> dict[str, Any]:
    """Parameters for submitit of a job, or of an array.

    Args:
        group: stages that ask for the same.
        profile: of the site.
        name: of the job.
        waits_for: a dependency, as sbatch has it.
        code: the snapshot that jobs run from.
        root: the run root.
    """
    has, again = Layout(group.stages[0], min(group.pack, len(group.stages))), group.again
    asked = has.asked
    further: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes", **profile.sbatch}
    if further.get("no-requeue"):
        del further["requeue"]
    if asked.time_floor_min is not None:
        further["time-min"] = asked.time_floor_min
    if again.wait_s:
        further["begin"] = f"now+{math.ceil(again.wait_s)}"
    further |= _gpus(has, profile)
    exclude = ",".join(filter(None, [profile.exclude, *again.without])) or None
    given = {
        "job_name": name, "time": asked.time_min, "nodes": has.nodes, "ntasks_per_node": has.tasks,
        "cpus_per_task": has.cpus, "mem": f"{round(has.mem_gb * 1024)}MB" if has.mem_gb else None,
        "partition": asked.partition or profile.partition, "account": profile.account, "qos": profile.qos,
        "constraint": profile.constraint, "exclude": exclude, "dependency": waits_for, "wckey": None,
        "signal_delay_s": signal_delay_s(profile, asked.time_min), "stderr_to_stdout": True,
        "setup": [*_environment(profile, code, root), *profile.setup, *_epilogue()], "additional_parameters": further,
        # srun has not taken this over from sbatch since 22.05; and one dead rank must not leave the others waiting
        "srun_args": [f"--cpus-per-task={has.cpus}", "--kill-on-bad-exit=1", *profile.srun_args],
    }  # fmt: skip
    if profile.array_parallel is not None:
        given["array_parallelism"] = profile.array_parallel
    return {key: value for key, value in given.items() if value is not None or key == "wckey"}


def text(given: Mapping[str, Any], tasks: int, logs: Path) -> str:
    """The script that sbatch would get."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(logs))}"
    count = {"map_count": tasks} if tasks > 1 else {}
    return str(_make_sbatch_string(command=python, folder=logs, **{**given, **count}))


def caches_of_weights(root: Path) -> dict[str, str]:
    """Where the libraries that networks come from keep what they download, if the user has not said so.

    The launcher plans with these, and so with a network; jobs find the same files without one.
    """
    folder = root / "weights"
    chosen = {"TORCH_HOME": folder / "torch", "HF_HUB_CACHE": folder / "hub"}
    return {name: os.environ.get(name) or str(place.absolute()) for name, place in chosen.items()}


def hand_in(given: Mapping[str, Any], logs: Path, calls: Sequence[Callable[[], Any]]) -> list[str]:
    """Give one job, or an array, to sbatch by submitit; returns the job of each call. Raises: SubmissionError."""
    from submitit.core.utils import FailedJobError
    from submitit.slurm.slurm import SlurmExecutor

    logging.getLogger("submitit").setLevel(logging.ERROR)
    try:
        executor = SlurmExecutor(folder=logs)
        executor.update_parameters(**given)
        with executor.batch():
            made = [executor.submit(call) for call in calls]
    except (FailedJobError, RuntimeError, OSError) as error:
        raise SubmissionError(f"sbatch refused it: {_said(error)}") from None
    return [str(job.job_id) for job in made]


def _said(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if "sbatch: error" in line]
    lines = [line for line in lines if QUEUE_IS_FULL.search(line)] or lines
    return (lines[-1] if lines else str(error)).strip()[:300]


def signal_delay_s(profile: Profile, time_min: int) -> int:
    """Seconds before its end that a job is told; SLURM may be a minute early."""
    return min(profile.signal_delay_s, max(5, round(SHORT_JOBS_KEEP * time_min * 60)))


def _gpus(has: Layout, profile: Profile) -> dict[str, Any]:
    if not has.gpus:
        return {}
    kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
    return {"gres": f"gpu:{kind}{has.gpus}"} if profile.gpus == "gres" else {"gpus-per-node": f"{kind}{has.gpus}"}


def _environment(profile: Profile, code: Path, root: Path) -> list[str]:
    """Lines that make a job run the code that was submitted, whatever has become of it since, and find its data."""
    plugins = shlex.quote(str(code / "plugins"))
    given = {
        "KDSCALE_RUNS": str(root),
        "KDSCALE_RETRY_AFTER_MIN": ",".join(f"{minutes:g}" for minutes in profile.retry_after_min),
        "KDSCALE_HANG_AFTER_S": f"{60 * profile.hang_after_min:g}",
        **{name: _absolute(os.environ.get(name, "")) for name in PASSED_ON},
        **caches_of_weights(root),
    }
    return [
        "export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1",
        *(f"export {name}={shlex.quote(value)}" for name, value in given.items() if value),
        f"export PYTHONPATH={shlex.quote(str(code))}:{plugins} KDSCALE_PLUGINS={plugins}",
        f"cd {shlex.quote(str(code))}",  # python -m looks where it stands first, which may be a checkout
    ]


def _absolute(paths: str) -> str:
    return os.pathsep.join(str(Path(path).expanduser().absolute()) for path in paths.split(os.pathsep) if path)


def _epilogue() -> list[str]:
    """Lines that judge the job when its ranks have not all ended well; see `epilogue`."""
    python = shlex.quote(sys.executable)
    judged = f"[ $code -eq 0 ] || {{ {python} -m kdscale.jobs.slurm.epilogue $code; code=$?; }}"
    return [f"kdscale_epilogue() {{ code=$?; trap - EXIT; {judged}; exit $code; }}", "trap kdscale_epilogue EXIT"]
