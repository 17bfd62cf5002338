"""What a screen knows of a sweep: states that tell the living from the dead, figures of the newest lines."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from kdscale.jobs import stage_view
from kdscale.jobs.overview import SweepView, Tail
from kdscale.pipeline.artifacts import Root
from tests.fake_sweeps import STARTED, Fake, begin, finish, log


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(Root(tmp_path), axes={"method": ["kd", "crd"], "seed": ["0", "1"]})


class TestTail:
    def line(self, step: int, when: float, **metrics: float) -> str:
        return json.dumps({"step": step, "epoch": 0.0, "time": when, "metrics": metrics}) + "\n"

    def test_takes_up_what_was_appended(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        tail = Tail(path)
        tail.refresh()
        assert tail.latest == {}
        path.write_text(self.line(1, 1.0, a=1.0, b=2.0))
        tail.refresh()
        with path.open("a") as file:
            file.write(self.line(2, 2.0, a=3.0)[:20])
        tail.refresh()
        assert (tail.step, tail.latest) == (1, {"a": 1.0, "b": 2.0})
        with path.open("a") as file:
            file.write(self.line(2, 2.0, a=3.0)[20:])
        tail.refresh()
        assert (tail.step, tail.latest) == (2, {"a": 3.0, "b": 2.0})

    def test_reads_no_byte_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(self.line(i, float(i), a=float(i)) for i in range(100)))
        tail = Tail(path)
        tail.refresh()
        path.write_bytes(b"\n" * path.stat().st_size)  # same length: nothing was appended
        tail.refresh()
        assert tail.step == 99

    def test_of_a_long_spool_only_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(self.line(0, 0.0, old=1.0) + "".join(self.line(i, float(i), a=1.0) for i in range(1, 100)))
        monkeypatch.setattr(stage_view, "FIRST_READ_BYTES", 500)
        tail = Tail(path)
        tail.refresh()
        assert tail.step == 99
        assert "old" not in tail.latest

    def test_a_spool_cut_on_resume_is_read_again(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(self.line(i, float(i), a=float(i)) for i in range(10)))
        tail = Tail(path)
        tail.refresh()
        path.write_text(self.line(3, 3.0, a=3.5))
        tail.refresh()
        assert (tail.step, tail.latest["a"]) == (3, 3.5)

    def test_what_is_no_line_is_left_out(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n[]\nnull\nnonsense\n' + self.line(5, 1.0, a=1.0))
        tail = Tail(path)
        tail.refresh()
        assert tail.step == 5

    def test_pace_is_wall_time_of_this_attempt(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text(self.line(10, 100.0, x=1.0) + self.line(20, 5000.0, x=1.0) + self.line(40, 5010.0, x=1.0))
        tail = Tail(path)
        tail.refresh()
        assert tail.seconds_per_step(since=4000.0) == pytest.approx(0.5)
        assert tail.seconds_per_step(since=5005.0) is None


class TestStates:
    def test_of_a_sweep_in_the_middle(self, fake: Fake) -> None:
        finish(fake.folder("data"), None)
        claim = begin(fake.folder("teacher"), time.time() - 100)
        view = SweepView(fake.sweep)
        assert view.counts() == {"done": 1, "running": 1, "waiting": 4}
        student = next(s for s in view.stages.values() if s.short == "student[kd,s0]")
        assert [p.short for p in view.waits_for(student)] == ["teacher"]
        assert not view.over
        claim.release()
        view.refresh()
        assert [s.short for s in view.in_state("lost")] == ["teacher"]
        assert view.over

    def test_claimed_but_not_yet_running_is_starting(self, fake: Fake) -> None:
        folder = fake.folder("teacher")
        folder.write_state(state="interrupted")
        claim = folder.claim({})
        view = SweepView(fake.sweep)
        assert [s.short for s in view.in_state("starting")] == ["teacher"]
        claim.release()

    def test_time_left_of_a_stage_and_of_the_sweep(self, fake: Fake) -> None:
        now = time.time()
        finish(fake.folder("data"), None)
        claim = begin(fake.folder("teacher"), now - 100)
        log(fake.folder("teacher"), 100, now - 50, train__loss=2.0)
        log(fake.folder("teacher"), 600, now, train__loss=1.0)
        view = SweepView(fake.sweep)
        (teacher,) = view.in_state("running")
        assert (teacher.step, teacher.steps, teacher.metric("train/loss")) == (600, 1000, 1.0)
        assert teacher.seconds_left() == pytest.approx(40.0, abs=0.1)
        assert view.seconds_left() == pytest.approx(40.0 + 4 * 100.0, abs=0.5)  # four students of the same cost
        claim.release()

    def test_before_the_first_figures_the_pace_is_that_of_the_attempt(self, fake: Fake) -> None:
        now = time.time()
        claim = begin(fake.folder("teacher"), now - 100, resumed_from=300)
        (teacher,) = SweepView(fake.sweep).in_state("running")
        assert teacher.seconds_left() is None
        claim.release()
        fake.folder("teacher").write_state(step=500)
        claim = begin(fake.folder("teacher"), now - 100, resumed_from=300)
        (teacher,) = SweepView(fake.sweep).in_state("running")
        assert teacher.seconds_left() == pytest.approx(250.0, abs=5)
        claim.release()

    def test_state_files_are_read_again_only_when_they_changed(self, fake: Fake) -> None:
        folder = fake.folder("teacher")
        view = SweepView(fake.sweep)
        path = folder.path / "state.json"
        before = path.stat()
        content = path.read_text().replace("waiting", "stopped")
        with path.open("r+") as file:
            file.write(content)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        view.refresh()
        assert not view.in_state("stopped")
        folder.write_state(step=1)
        view.refresh()
        assert view.in_state("stopped")

    def test_walls_add_up(self, fake: Fake) -> None:
        attempts = [
            {"attempt": 1, "started": STARTED, "ended": STARTED + 50, "outcome": "interrupted"},
            {"attempt": 2, "started": STARTED + 80, "ended": STARTED + 90, "outcome": "done"},
        ]
        finish(fake.folder("teacher"), attempts=attempts)
        (stage,) = (s for s in SweepView(fake.sweep).stages.values() if s.short == "teacher")
        assert stage.wall_s() == 60
