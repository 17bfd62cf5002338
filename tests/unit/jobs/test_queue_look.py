"""The scheduler's answer in plain words, and where nobody can be asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kdscale.jobs.slurm.look import QueueLook, job_ranges
from kdscale.jobs.slurm.reasons import MAINTENANCE, in_words, maintenance_words
from kdscale.pipeline.artifacts import Root


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "its turn: jobs of higher priority go first (Priority)"),
        ("ReqNodeNotAvail, Reserved for maintenance", MAINTENANCE),
        ("Maintenance", MAINTENANCE),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "reserved: n[1-2] (ReqNodeNotAvail)"),
        ("ReqNodeNotAvail", "nodes that are down, drained or reserved (ReqNodeNotAvail)"),
        ("(Nodes required for job are DOWN, DRAINED or reserved)", "nodes that are down"),
        ("QOSMaxCpuPerUserLimit", "cores: its qos allows no more at once (QOSMaxCpuPerUserLimit)"),
        ("QOSMaxJobsPerUserLimit", "its turn: its qos allows no more jobs at once"),
        ("QOSGrpGRES", "GPUs: its qos"),
        ("QOSMaxWallDurationPerJobLimit", "lower resources.time_min"),
        ("AssocGrpCPUMinutesLimit", "the quota of your account: its hours are used up"),
        ("AssocMaxJobsLimit", "its turn: your account"),
        ("QOSMaxUnheardOf", "a limit of its qos (QOSMaxUnheardOf)"),
        ("JobHeldUser", "scontrol release"),
        ("SomethingOfNextYear", "SomethingOfNextYear"),
    ],
)
def test_reasons_are_said_in_words(reason: str, words: str) -> None:
    assert words in in_words(reason)


def test_a_maintenance_has_its_time_and_what_fits_before_it() -> None:
    now = time.time()
    assert maintenance_words(now + 2 * 3600, now).endswith("resources.time_min=119 at most")
    assert "since" in maintenance_words(now - 60, now)
    assert "time_min" not in maintenance_words(now + 30, now)


def test_jobs_are_named_as_slurm_takes_them() -> None:
    assert job_ranges(["12", "13_0", "13_1", "13_2", "13_7", "14"]) == "12,13_[0-2,7],14"


def test_where_no_stage_is_a_job_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    look = QueueLook(Root(tmp_path))
    look.refresh(["0" * 64])
    assert (look.asked, look.problem) == (0.0, "")


def test_where_the_queue_cannot_be_asked_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "7.json").write_text('{"digest": "ab", "job": "7", "submitted": 1.0}')
    look = QueueLook(Root(tmp_path))
    look.refresh(["ab"])
    assert "squeue is not here" in look.problem
    assert look.job("ab") is None
    assert not look.gone("ab", 0.0)
