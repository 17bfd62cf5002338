"""Why a job waits, in plain words: SLURM's reasons as squeue prints them, and what could be done."""

from __future__ import annotations

import time

__all__ = ["MAINTENANCE", "in_words", "maintenance_words"]

MAINTENANCE = "nodes, which are reserved for maintenance"
"""How the words of a job begin that waits for the end of a maintenance."""

_WORDS = {
    "None": "it was submitted this moment",
    "Priority": "its turn: jobs of higher priority go first",
    "Resources": "nodes that become free: its turn has come",
    "Dependency": "the stages that it takes from",
    "DependencyNeverSatisfied": "a job that ended badly: it will never run",
    "BeginTime": "its time to begin, which for a job that was put back is two minutes later",
    "JobHeldUser": "its user, who holds it: scontrol release JOB",
    "JobHeldAdmin": "an administrator, who holds it: ask the site",
    "JobArrayTaskLimit": "other tasks of its array: as many run at once as the profile's array_parallel allows",
    "JobRequeueHold": "its user: it was put back and is held: scontrol release JOB",
    "SchedDefer": "the scheduler, which is busy",
    "Cleaning": "the end of its last run's cleaning up",
    "Licenses": "a licence",
    "Reservation": "the begin of its reservation",
    "ReservationDeleted": "a reservation that was deleted: it will never run",
    "NodeDown": "a node that is down",
    "FrontEndDown": "a front end that is down",
    "BadConstraints": "nodes that do not exist: its resources, or the profile's constraint, ask for too much",
    "PartitionDown": "its partition, which takes jobs but starts none now",
    "PartitionInactive": "its partition, which is switched off",
    "PartitionNodeLimit": "more nodes than its partition gives to a job: lower resources.nodes",
    "PartitionTimeLimit": "more time than its partition gives to a job: lower resources.time_min",
    "AccountNotAllowed": "an account that may use its partition: the profile's account",
    "InvalidAccount": "a valid account: the profile's account (sacctmgr show assoc user=$USER)",
    "InvalidQOS": "a valid qos: the profile's qos (sacctmgr show assoc user=$USER)",
    "QOSNotAllowed": "a qos that its partition allows: the profile's qos",
    "QOSResourceLimit": "a limit of its qos",
    "QOSJobLimit": "its turn: its qos runs no more jobs at once",
    "QOSTimeLimit": "more time than its qos gives to a job: lower resources.time_min",
    "QOSUsageThreshold": "its account's fair share: too much was used",
    "AssociationJobLimit": "its turn: your account runs no more jobs at once",
    "AssociationResourceLimit": "a limit of your account",
    "AssociationTimeLimit": "the time that your account has left (its quota is used up)",
    "AssociationMaxJobsLimit": "its turn: your account runs no more jobs at once",
    "MaxSubmitJobs": "its turn: no more jobs may be submitted",
    "launch failed requeued held": "its user: it could not be started and is held: scontrol release JOB",
}

_LIMITED = (
    ("MaxWallDuration", "more time than {who} gives to a job: lower resources.time_min"),
    ("GRES", "GPUs: {who} allows no more at once"),
    ("Gpu", "GPUs: {who} allows no more at once"),
    ("Cpu", "cores: {who} allows no more at once"),
    ("Mem", "memory: {who} allows no more at once"),
    ("Node", "nodes: {who} allows no more at once"),
    ("Jobs", "its turn: {who} allows no more jobs at once"),
    ("Submit", "its turn: {who} allows no more jobs in the queue"),
    ("Billing", "the quota of {who}"),
    ("Minutes", "the quota of {who}: its hours are used up, or promised to what runs"),
)
"""Of QOSMaxCpuPerUserLimit, AssocGrpGRES and a hundred like them: what is limited; the first that fits."""
_WHOSE = {"QOS": "its qos", "Assoc": "your account", "Max": "the site", "Grp": "your group"}


def in_words(reason: str) -> str:
    """What a job waits for; SLURM's own word where nobody has written it down.

    Args:
        reason: as squeue prints it: `Priority`, `ReqNodeNotAvail, Reserved for maintenance`.
    """
    lowered = reason.lower()
    if "reserved for maintenance" in lowered or reason == "Maintenance":
        return MAINTENANCE
    if reason in _WORDS:
        return f"{_WORDS[reason]} ({reason})"
    if lowered.startswith(("reqnodenotavail", "nodes required for job", "(nodes required for job")):
        names = reason.partition("UnavailableNodes:")[2]
        return f"nodes that are down, drained or reserved{f': {names}' if names else ''} (ReqNodeNotAvail)"
    return _limit(reason) or reason


def maintenance_words(begins: float, now: float) -> str:
    """The same with its time, and what would still fit before it."""
    at = time.strftime("%a %d %b %H:%M", time.localtime(begins))
    if begins <= now:
        return f"{MAINTENANCE} since {at} (scontrol show res)"
    fits = int((begins - now) // 60) - 1
    hint = f"; before it fits what asks for resources.time_min={fits} at most" if fits > 0 else ""
    return f"{MAINTENANCE} from {at} (scontrol show res){hint}"


def _limit(reason: str) -> str:
    """Reasons made of whose limit it is and what it limits."""
    whose = next((who for prefix, who in _WHOSE.items() if reason.startswith(prefix)), None)
    words = next((words for part, words in _LIMITED if part in reason), "a limit of {who}")
    if "Minutes" in reason:  # CPUMinutes are hours used, not cores
        words = _LIMITED[-1][1]
    return f"{words.format(who=whose)} ({reason})" if whose else ""
