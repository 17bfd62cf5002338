"""What `doctor.py --cluster` finds out about a cluster: its scheduler's settings, and what a node of it sees."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from kdscale.doctor.findings import Finding
from kdscale.errors import SubmissionError
from kdscale.jobs.offline import SOMEWHERE, probe_nodes
from kdscale.jobs.slurm.probe import Probe
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.queue import ask
from kdscale.jobs.slurm.snapshot import take_snapshot
from kdscale.pipeline.planned import Plan

__all__ = ["examine_cluster"]

GRACE_S = 10
"""A preempted job needs about as long to save itself."""


def examine_cluster(profile: Profile, runs: Path, say: Callable[[str], None]) -> Iterator[Finding]:
    """Ask the scheduler, then send a job of a minute to a node and wait for it.

    Args:
        profile: of the site.
        runs: the run root; the probe writes below it.
        say: told while the probe waits.
    """
    try:
        yield from _settings(ask("scontrol", "show", "config"))
        yield from _partition(profile)
    except SubmissionError as error:
        yield Finding("scheduler", "slurm", "broken", str(error), "run it on a login node", needed=True)
        return
    runs = runs.absolute()
    runs.mkdir(parents=True, exist_ok=True)
    wanted = {
        "schema": 1, "root": str(runs), "files": [], "tracking": None, "ship": "auto", "internet": SOMEWHERE,
        "stage_to": [], "bytes": 0,
    }  # fmt: skip
    probe = Probe(runs, profile, take_snapshot(runs, Plan("doctor", "", {}, [], {}, {})), None, 0, wanted)
    for sight in probe_nodes([probe], say, wait=True):
        where = f"{sight.node}: " if sight.node else ""
        yield from (replace(finding, text=f"{where}{finding.text}") for finding in sight.findings)


def _partition(profile: Profile) -> Iterator[Finding]:
    if profile.partition is None:
        yield Finding("scheduler", "partition", "ok", "the site's default partition")
        return
    for name in profile.partition.split(","):
        try:
            said = ask("scontrol", "show", "partition", name)
        except SubmissionError:
            there = ", ".join(ask("sinfo", "--noheader", "--format=%R").split())
            text = f"there is no partition {name}"
            yield Finding("scheduler", f"partition {name}", "broken", text, f"the site has: {there}", needed=True)
            continue
        state, limit, grace = (_value(said, key) for key in ("State", "MaxTime", "GraceTime"))
        text = f"partition {name}: {state}, at most {limit} a job, {grace} s of grace when preempted"
        preempts = _value(said, "PreemptMode") not in ("OFF", "")
        if preempts and grace.isdigit() and int(grace) < GRACE_S:
            mend = "a preempted job is killed before it has saved: steps since its last checkpoint are done again"
            yield Finding("scheduler", f"partition {name}", "note", text, mend)
        else:
            yield Finding("scheduler", f"partition {name}", "ok", text)


def _settings(config: str) -> Iterator[Finding]:
    """The rows of slurm/README.md's table of settings."""
    array = _value(config, "MaxArraySize")
    version = _value(config, "SLURM_VERSION")
    yield Finding("scheduler", "slurm", "ok", f"SLURM {version}, arrays of less than {array} tasks")
    if _value(config, "JobRequeue") == "1":
        yield Finding("scheduler", "requeue", "ok", "jobs may be requeued")
    else:
        mend = "jobs end instead of coming back: the command that submitted them submits them again"
        yield Finding("scheduler", "requeue", "note", "JobRequeue is 0", mend)
    if "CANCEL" in _value(config, "PreemptMode"):
        mend = "preempted jobs do not come back by themselves: the command that submitted them submits them again"
        yield Finding("scheduler", "preemption", "note", f"PreemptMode is {_value(config, 'PreemptMode')}", mend)
    if "preempt_send_user_signal" not in _value(config, "SlurmctldParameters"):
        mend = "a preempted job hears SIGTERM only, and saves on that too"
        yield Finding("scheduler", "signal", "ok", f"no preempt_send_user_signal: {mend}")
    accounting = _value(config, "AccountingStorageType")
    kept = accounting not in ("accounting_storage/none", "(null)", "")
    yield Finding("scheduler", "accounting", "ok", "accounting" if kept else "no accounting, and none is needed")


def _value(said: str, key: str) -> str:
    found = re.search(rf"(?:^|\s){key}\s*=\s*(\S+)", said)
    return found.group(1) if found else ""
