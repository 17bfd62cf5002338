"""Logs by attempt and rank, followed over attempts; stacks of live processes, and of those that listen only."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdscale.errors import ConfigError, StageError
from kdscale.jobs import logs
from kdscale.jobs.stacks import stacks
from kdscale.pipeline import claims
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.fake_sweeps import Fake, begin

ROOT = Path(__file__).resolve().parents[3]

WORKER = """
import faulthandler, signal, sys, time
from pathlib import Path
from kdscale.pipeline.artifacts import StageFolder
folder, listens = StageFolder(Path(sys.argv[1])), sys.argv[2] == "listens"
if listens:
    faulthandler.register(signal.SIGUSR1, file=open(folder.logs / "attempt1-rank0.log", "a"), all_threads=True)
claim = folder.claim({})
folder.write_state(state="running")
def a_loop_that_hangs():
    print("ready", flush=True)
    time.sleep(60)
a_loop_that_hangs()
"""


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(Root(tmp_path), axes={"seed": ["0", "1"]})


@pytest.fixture
def stage(fake: Fake) -> StageFolder:
    folder = fake.folder("teacher")
    for attempt, rank in [(1, 0), (1, 1), (2, 0), (2, 1), (10, 0)]:
        path = folder.logs / f"attempt{attempt}-rank{rank}.log"
        path.write_text("".join(f"{attempt}.{rank} line {i}\n" for i in range(5)))
    (folder.logs / "attempt1-rank0.error.json").write_text("{}")
    return folder


class TestShow:
    def test_the_newest_attempt_of_rank_0(self, stage: StageFolder) -> None:
        out = io.StringIO()
        assert logs.show(stage, 0, None, 0, out)[0].attempt == 10
        assert out.getvalue().splitlines() == [f"10.0 line {i}" for i in range(5)]

    def test_any_other(self, stage: StageFolder) -> None:
        out = io.StringIO()
        logs.show(stage, 1, 2, 0, out)
        assert out.getvalue().startswith("2.1 line 0")

    def test_what_is_left_out_is_said(self, stage: StageFolder, capsys: pytest.CaptureFixture[str]) -> None:
        out = io.StringIO()
        logs.show(stage, 0, None, 2, out)
        assert out.getvalue() == "10.0 line 3\n10.0 line 4\n"
        assert "3 earlier lines" in capsys.readouterr().err

    @pytest.mark.parametrize(("rank", "attempt"), [(5, 1), (0, 7)])
    def test_what_is_not_there_lists_what_is(self, stage: StageFolder, rank: int, attempt: int) -> None:
        with pytest.raises(StageError, match="there are attempt 1 ranks 0, 1, attempt 2 ranks 0, 1, attempt 10 rank 0"):
            logs.show(stage, rank, attempt, 0, io.StringIO())

    def test_a_stage_that_has_not_begun(self, fake: Fake) -> None:
        with pytest.raises(StageError, match="none: it has not begun"):
            logs.show(fake.folder("data"), 0, None, 0, io.StringIO())

    def test_a_sweep_lists_its_stages_the_failed_first(self, fake: Fake) -> None:
        fake.folder("student", "1").write_state(state="failed")
        with pytest.raises(ConfigError) as caught:
            logs.stage_of("birds", fake.root)
        lines = str(caught.value).splitlines()
        assert lines[1] == "  'birds:student[s1]'  (failed)"
        assert len(lines) == 5


class TestOfAJob:
    """What sbatch and srun wrote, in the folders that submitit makes."""

    @pytest.fixture
    def student(self, fake: Fake) -> StageFolder:
        folder, jobs = fake.folder("student", "0"), fake.root.path / "jobs"
        (jobs / "slurm" / "14").mkdir(parents=True)
        (jobs / "slurm" / "15").mkdir(parents=True)
        for job, when in (("14_2", 1.0), ("15", 2.0)):
            note = {"submitted": when, "tasks": [{"job": job, "digest": folder.digest}]}
            (jobs / f"{job.partition('_')[0]}.json").write_text(json.dumps(note))
        (jobs / "slurm" / "14" / "14_2_0_log.out").write_text("of an earlier job\n")
        (jobs / "slurm" / "15" / "15_0_log.out").write_text("no such python\n")
        (jobs / "slurm" / "15" / "15_1_log.out").write_text("nor there\n")
        return folder

    def said(self, folder: StageFolder, rank: int = 0, **options: bool) -> str:
        out = io.StringIO()
        logs.show(folder, rank, None, 0, out, **options)
        return out.getvalue()

    def test_that_died_before_a_rank_wrote_is_shown_instead(self, student: StageFolder) -> None:
        assert self.said(student) == "no such python\n"
        assert self.said(student, 1) == "nor there\n"
        assert self.said(student, 7) == "no such python\n"

    def test_is_shown_on_demand_and_named_where_it_came_last(
        self, student: StageFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rank = student.logs / "attempt1-rank0.log"
        rank.write_text("a rank\n")
        assert self.said(student) == "a rank\n"
        assert capsys.readouterr().err == ""
        os.utime(rank, (1, 1))
        assert self.said(student) == "a rank\n"
        assert "job 15 wrote something after that: --job prints it" in capsys.readouterr().err
        assert self.said(student, of_job=True) == "no such python\n"

    def test_that_wrote_nothing_or_that_there_never_was_is_refused(self, student: StageFolder, fake: Fake) -> None:
        for path in (fake.root.path / "jobs" / "slurm").glob("*/*.out"):
            path.unlink()
        with pytest.raises(StageError, match="its job 15 has written nothing"):
            self.said(student)
        with pytest.raises(StageError, match="never a job"):
            self.said(fake.folder("teacher"), of_job=True)


class TestFollow:
    def test_goes_on_over_attempts_until_the_stage_rests(
        self, stage: StageFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logs, "FOLLOW_EVERY_S", 0.01)
        claim = begin(stage)
        out = io.StringIO()
        log, position = logs.show(stage, 0, None, 1, io.StringIO())
        thread = threading.Thread(target=logs.follow, args=(stage, log, position, out), kwargs={"newer": True})
        thread.start()
        with log.path.open("a") as file:
            file.write("appended\n")
        wait_for(out, "appended\n")
        (stage.logs / "attempt11-rank0.log").write_text("resumed\n")
        wait_for(out, "resumed\n")
        stage.write_state(state="done")
        claim.release()
        thread.join(10)
        assert not thread.is_alive()
        assert out.getvalue() == "appended\n--- attempt 11\nresumed\n"

    def test_of_one_attempt_stays_with_it(self, stage: StageFolder) -> None:
        stage.write_state(state="failed")
        out = io.StringIO()
        logs.follow(stage, logs.log_files(stage)[0], 55, out, newer=False)
        assert out.getvalue() == ""


def wait_for(out: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 10
    while not out.getvalue().endswith(text):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestStacks:
    @pytest.fixture
    def worker(self, fake: Fake, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
        (fake.folder("teacher").logs / "attempt1-rank0.log").touch()
        child = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(fake.folder("teacher").path), request.param],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
        child.kill()
        child.communicate()

    @pytest.mark.parametrize("worker", ["listens"], indirect=True)
    def test_of_a_live_process_are_printed(self, fake: Fake, worker: subprocess.Popen[str]) -> None:
        out = io.StringIO()
        stacks(fake.folder("teacher"), out)
        assert out.getvalue().startswith("--- rank 0\n")
        assert "in a_loop_that_hangs" in out.getvalue()
        assert worker.poll() is None

    @pytest.mark.parametrize("worker", ["deaf"], indirect=True)
    def test_a_process_that_does_not_listen_is_not_killed_by_asking(
        self, fake: Fake, worker: subprocess.Popen[str]
    ) -> None:
        with pytest.raises(StageError, match="still starting"):
            stacks(fake.folder("teacher"), io.StringIO())
        time.sleep(0.1)
        assert worker.poll() is None

    def test_of_nothing_or_elsewhere_are_refused(self, fake: Fake) -> None:
        stage = fake.folder("teacher")
        with pytest.raises(StageError, match="does not run now"):
            stacks(stage, io.StringIO())
        now = time.time()
        holder = {"schema": 1, **claims.this(), "host": "node7", "attempt": 1, "since": now, "heartbeat": now}
        (stage.path / "claim.json").write_text(json.dumps(holder))
        with pytest.raises(StageError, match="runs on node7, not here"):
            stacks(stage, io.StringIO())


class TestCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "launch" / "logs.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def test_exit_codes(self, fake: Fake, stage: StageFolder) -> None:
        runs = ["--runs", str(fake.root.path)]
        assert self.run("birds:teacher", *runs).stdout.startswith("10.0 line 0\n")
        assert self.run("birds:teacher", "--rank", "9", *runs).returncode == 1
        assert self.run("birds", *runs).returncode == 2

    def test_a_closed_pipe_is_no_error(self, fake: Fake, stage: StageFolder) -> None:
        (stage.logs / "attempt10-rank0.log").write_text("x" * 99 + "\n" + "y\n" * 500_000)
        child = subprocess.Popen(
            [sys.executable, ROOT / "launch" / "logs.py", "birds:teacher", "-n", "0", "--runs", fake.root.path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        assert os.read(child.stdout.fileno(), 10) == b"x" * 10
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(30) == 0
        child.stderr.close()
