"""The scheduler's answer in plain words, and where nobody can be asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kdscale.jobs.findings import again, troubles, waiting
from kdscale.jobs.overview import SweepView
from kdscale.jobs.slurm.look import QueueLook, job_ranges
from kdscale.jobs.slurm.queue import QueuedJob
from kdscale.jobs.slurm.reasons import MAINTENANCE, in_words, maintenance_words
from kdscale.pipeline import claims
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.fake_sweeps import Fake, finish


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
    (tmp_path / "jobs" / "7.json").write_text('{"submitted": 1.0, "tasks": [{"digest": "ab", "job": "7"}]}')
    look = QueueLook(Root(tmp_path))
    look.refresh(["ab"])
    assert "squeue is not here" in look.problem
    assert look.job("ab") is None
    assert not look.gone("ab", 0.0)


class TestStatesByTheQueue:
    """What squeue answered is given by hand; the stages are folders."""

    @pytest.fixture
    def fake(self, tmp_path: Path) -> Fake:
        fake = Fake(Root(tmp_path), axes={"seed": ["0", "1"]})
        finish(fake.folder("data"), None)
        return fake

    def view(self, fake: Fake, **jobs: QueuedJob | None) -> SweepView:
        """The sweep, with an answer of this moment: a job by stage, None where it is gone."""
        stages = {
            "teacher": fake.folder("teacher"),
            "s0": fake.folder("student", "0"),
            "s1": fake.folder("student", "1"),
        }
        view = SweepView(fake.sweep, fake.root)
        ids = {stages[name].digest: job.id if job else "12" for name, job in jobs.items()}
        view.queue = QueueLook(fake.root, ids, asked=time.time() + 1)
        view.queue._queue = {job.id: job for job in jobs.values() if job}
        view.queue._next = time.monotonic() + 60
        view.refresh()
        return view

    def died(self, folder: StageFolder, state: str = "running") -> None:
        """Left by a process on another node, silent for an hour."""
        then = time.time() - 3600
        attempt = {"attempt": 1, "started": then, "ended": None, "outcome": None, "world": 1, "host": "n1"}
        folder.write_state(state=state, step=400, steps=1000, attempts=[attempt])
        holder = {"schema": 1, **claims.this(), "host": "n1", "attempt": 1, "since": then, "heartbeat": then}
        (folder.path / "claim.json").write_text(json.dumps(holder))

    def test_put_back_is_queued_and_goes_on_where_it_was(self, fake: Fake) -> None:
        self.died(fake.folder("teacher"))
        fake.folder("teacher").write_state(state="interrupted")
        view = self.view(fake, teacher=QueuedJob("12", "PENDING", "Priority", "", time.time() + 2 * 3600))
        words = waiting(view)[0].words
        assert view.counts()["queued"] == 1
        assert words.startswith("for its turn: jobs of higher priority go first (Priority)   job 12, from about ")
        assert words.endswith("goes on from step 400 of 1,000")
        assert again(view) == "interrupted 1 x"
        assert not view.over

    def test_killed_and_put_back_is_queued_too(self, fake: Fake) -> None:
        self.died(fake.folder("teacher"))
        assert self.view(fake, teacher=QueuedJob("12", "PENDING", "BeginTime", "")).counts()["queued"] == 1

    def test_begun_again_is_starting_but_hung_is_lost(self, fake: Fake) -> None:
        self.died(fake.folder("teacher"))
        view = self.view(fake, teacher=QueuedJob("12", "RUNNING", "None", "n1", time.time()))
        assert view.counts()["starting"] == 1
        view = self.view(fake, teacher=QueuedJob("12", "RUNNING", "None", "n1", time.time() - 4000))
        (found,) = troubles(view)
        assert found.words == "job 12 is RUNNING on n1, but shows no sign of life, at step 400 of 1,000"
        assert found.hint == "python launch/logs.py birds:teacher --stacks"

    def test_gone_without_a_word_is_lost(self, fake: Fake) -> None:
        fake.folder("teacher").write_state(state="queued", reason="job 12")
        (found,) = troubles(self.view(fake, teacher=None))
        assert found.words == "job 12 is gone from the queue and its ranks wrote nothing"
        self.died(fake.folder("teacher"))
        (found,) = troubles(self.view(fake, teacher=None))
        assert found.words == "process {} on n1 is gone, and so is job 12, at step 400 of 1,000".format(
            claims.this()["pid"]
        )

    def test_those_that_wait_for_parents_alone_name_them(self, fake: Fake) -> None:
        queue = {f"s{i}": QueuedJob(f"13_{i}", "PENDING", "Dependency", "") for i in range(2)}
        view = self.view(fake, teacher=QueuedJob("12", "PENDING", "Resources", "", time.time() + 400 * 86400), **queue)
        teacher, students = waiting(view)
        assert teacher.words == "for nodes that become free: its turn has come (Resources)   job 12"
        assert students.words == "for teacher (queued)   jobs 13_[0-1]"

    def test_a_job_that_is_about_to_be_withdrawn_changes_no_state(self, fake: Fake) -> None:
        fake.folder("teacher").write_state(state="cancelled", reason="x")
        assert self.view(fake, teacher=QueuedJob("12", "PENDING", "Priority", "")).counts()["cancelled"] == 1
