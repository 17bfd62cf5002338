"""The screen of a sweep: causes before numbers, names and commands that can be pasted, states set right on demand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from kdscale.errors import ConfigError
from kdscale.jobs import status
from kdscale.pipeline import claims
from kdscale.pipeline.artifacts import Claim, Root, StageFolder
from kdscale.pipeline.names import resolve
from tests.fake_sweeps import STARTED, Fake, begin, finish, log

ROOT = Path(__file__).resolve().parents[3]
AXES = {"method": ["kd", "crd"], "seed": ["0", "1", "2"]}


def printed(name: str | None, root: Root, width: int = 120, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    status.show(name, root, console, as_json=options.get("as_json", False), healing=options.get("healing", False))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def kill(folder: StageFolder) -> None:
    """Leave a stage as a killed process leaves it."""
    folder.write_state(
        state="running", step=400, steps=1000,
        attempts=[{"attempt": 1, "started": STARTED, "ended": None, "outcome": None, "world": 1}],
    )  # fmt: skip
    holder = {"schema": 1, **claims.this(), "started": 1, "attempt": 1, "since": STARTED, "heartbeat": STARTED + 60}
    (folder.path / "claim.json").write_text(json.dumps(holder))


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    fake = Fake(Root(tmp_path), axes=AXES)
    finish(fake.folder("data"), None)
    finish(fake.folder("teacher"), 0.93, wall_s=720.0)
    return fake


@pytest.fixture
def night(fake: Fake) -> Iterator[Fake]:
    """What somebody finds in the morning."""
    now = time.time()
    fake.folder("student", "kd", "0").write_state(state="failed", reason="NonFiniteLoss: term kd at step 120\nmore")
    for seed in ("1", "2"):
        fake.folder("student", "kd", seed).write_state(state="paused", reason="no space left on /lustre/me")
    kill(fake.folder("student", "crd", "0"))
    running: list[Claim] = [begin(fake.folder("student", "crd", "1"), now - 100)]
    log(fake.folder("student", "crd", "1"), 100, now - 50, train__loss=2.0)
    log(fake.folder("student", "crd", "1"), 600, now, train__loss=1.25, val__top1=0.81, train__images_per_s=2310.0)
    yield fake
    for claim in running:
        claim.release()


class TestScreen:
    def test_causes_come_first(self, night: Fake) -> None:
        lines = printed("birds", night.root).splitlines()
        assert lines[0].startswith("birds  6 trials   done 2 · waiting 1 · running 1 · lost 1 · paused 2 · failed 1")
        labels = [line.split()[0] for line in lines[1:] if line.split()[0] not in ("→", "planned")]
        assert labels[:4] == ["failed", "paused", "lost", "running"]

    def test_a_loss_that_was_not_finite_can_be_replayed(self, fake: Fake) -> None:
        reason = "term kd became nan or inf at step 120 on rank 0. Lower train.lr"
        fake.folder("student", "kd", "0").write_state(state="failed", reason=reason)
        text = printed("birds", fake.root)
        assert "→ python launch/replay.py 'birds:student[kd,s0]'" in text
        assert "launch/logs.py" not in text

    def test_says_what_happened_and_what_to_type(self, night: Fake) -> None:
        text = printed("birds", night.root)
        assert "birds:student[kd,s0]  NonFiniteLoss: term kd at step 120\n" in text
        assert "→ python launch/logs.py 'birds:student[kd,s0]'" in text
        assert "2 x student  no space left on /lustre/me" in text
        assert "→ python launch/runs.py du" in text
        assert f"process {os.getpid()} on {claims.this()['host']} is gone, at step 400 of 1,000" in text

    def test_running_stages_have_figures(self, night: Fake) -> None:
        row = next(line for line in printed("birds", night.root).splitlines() if "birds:student[crd,s1]" in line)
        for cell in ("600/1,000", "60%", "1.2500", "0.8100", "0:40", "2,310"):
            assert cell in row

    def test_every_name_can_be_pasted(self, night: Fake) -> None:
        words = {w.strip("'") for w in printed("birds", night.root).split() if w.strip("'").startswith("birds:")}
        assert len(words) > 3
        for word in words:
            assert isinstance(resolve(word, night.root), StageFolder)

    def test_who_waits_for_whom(self, tmp_path: Path) -> None:
        fake = Fake(Root(tmp_path), axes=AXES)
        finish(fake.folder("data"), None)
        now = time.time()
        claim = begin(fake.folder("teacher"), now - 100)
        log(fake.folder("teacher"), 100, now - 50)
        log(fake.folder("teacher"), 620, now)
        assert "6 x student  for teacher (running 62%, about 0:37 left)" in printed("birds", fake.root)
        claim.release()

    def test_when_nothing_moves_it_names_the_command_that_goes_on(self, fake: Fake) -> None:
        fake.folder("student", "kd", "0").write_state(state="interrupted", step=300, reason="asked to stop by SIGTERM")
        text = printed("birds", fake.root)
        assert "asked to stop by SIGTERM (step 300 of 1,000)" in text
        assert "go on        python launch/sweep.py configs/birds.yaml" in text
        with fake.sweep.launching():
            assert "go on" not in printed("birds", fake.root)

    def test_a_finished_sweep_is_short(self, fake: Fake) -> None:
        for seed in AXES["seed"]:
            for method in AXES["method"]:
                finish(fake.folder("student", method, seed), 0.9)
        text = printed("birds", fake.root)
        assert text.startswith("birds  6 trials   done 8   ")
        assert "birds:teacher  top-1 0.9300  in 12:00" in text
        assert "go on" not in text

    def test_a_stage_slower_than_its_siblings_is_pointed_out(self, fake: Fake) -> None:
        claimed = []
        for seed, pace in zip(AXES["seed"], (1000.0, 950.0, 400.0), strict=True):
            folder = fake.folder("student", "kd", seed)
            claimed.append(begin(folder, time.time()))
            log(folder, 10, time.time(), train__images_per_s=pace, time__data_s=0.06, time__step_s=0.1)
        text = printed("birds", fake.root)
        said = "0.42 x the speed of its siblings (waits for data 60% of a step, siblings 60%)"
        assert f"birds:student[kd,s2]  on {claims.this()['host']}: {said}" in " ".join(text.split("\n" + 14 * " "))
        assert text.count("x the speed") == 1
        for claim in claimed:
            claim.release()

    def test_attempts_are_counted_by_how_they_ended(self, fake: Fake) -> None:
        outcomes = ["interrupted", "lost", "interrupted", "done"]
        attempts = [{"attempt": i, "started": STARTED, "ended": STARTED, "outcome": o} for i, o in enumerate(outcomes)]
        finish(fake.folder("student", "kd", "0"), attempts=attempts)
        assert "again        interrupted 2 x · lost 1 x" in printed("birds", fake.root)

    def test_without_a_name_the_latest_is_shown_and_others_listed(self, fake: Fake) -> None:
        other = Fake(fake.root, name="older")
        os.utime(other.sweep.plan_file, (1, 1))
        lines = printed(None, fake.root).splitlines()
        assert lines[0].startswith("birds ")
        assert lines[-1].startswith("older  waiting 3  planned")

    @pytest.mark.parametrize("name", ["nothing", "birds:student"])
    def test_what_is_no_sweep_is_refused(self, fake: Fake, name: str) -> None:
        with pytest.raises(ConfigError):
            printed(name, fake.root)

    def test_a_stage_stands_for_its_sweep(self, fake: Fake) -> None:
        assert printed("birds:teacher", fake.root).startswith("birds ")


class TestHeal:
    def test_sets_right_what_a_dead_process_left_and_nothing_else(self, night: Fake) -> None:
        before = {f.path: (f.path / "state.json").read_bytes() for f in night.all()}
        text = printed("birds", night.root, healing=True)
        assert text.startswith("healed student-")
        assert "lost" not in text.splitlines()[1]
        changed = [f for f in night.all() if (f.path / "state.json").read_bytes() != before[f.path]]
        assert [f.path for f in changed] == [night.folder("student", "crd", "0").path]
        assert changed[0].state()["state"] == "interrupted"
        assert "healed" not in printed("birds", night.root, healing=True)

    def test_without_a_name_every_sweep_is_healed_but_no_other_root(self, night: Fake, tmp_path: Path) -> None:
        lab = Fake(Root(tmp_path / "lab"), name="theirs")
        kill(lab.folder("teacher"))
        other = Fake(night.root, name="other")
        kill(other.folder("teacher"))
        root = Root(night.root.path, [lab.root.path])
        assert len(status.heal(root, None)) == 2
        assert lab.folder("teacher").state()["state"] == "running"

    def test_of_a_named_sweep_only_its_stages(self, night: Fake) -> None:
        other = Fake(night.root, name="other")
        kill(other.folder("teacher"))
        assert len(status.heal(night.root, night.sweep)) == 1
        assert other.folder("teacher").state()["state"] == "running"


class TestJson:
    def test_holds_what_the_screen_shows(self, night: Fake) -> None:
        document = json.loads(printed("birds", night.root, as_json=True, healing=True))
        assert document["schema"] == 1
        assert len(document["healed"]) == 1
        assert document["counts"] == {"done": 2, "failed": 1, "paused": 2, "running": 1, "interrupted": 1, "waiting": 1}
        stage = next(s for s in document["stages"] if s["name"] == "birds:student[crd,s1]")
        assert (stage["state"], stage["step"], stage["loss"], stage["val_top1"]) == ("running", 600, 1.25, 0.81)
        assert stage["seconds_left"] == pytest.approx(40, abs=0.1)
        assert document["over"] is False


class TestCommand:
    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "launch" / "status.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def test_exit_codes(self, fake: Fake, tmp_path: Path) -> None:
        runs = ["--runs", str(fake.root.path)]
        assert self.run("birds", *runs).returncode == 0
        fake.folder("student", "kd", "0").write_state(state="failed", reason="x")
        assert self.run("birds", *runs).returncode == 1
        unknown = self.run("bords", *runs)
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert unknown.stderr == f"error: nothing under {tmp_path} is called 'bords'; did you mean birds?\n"

    def test_watching_ends_when_nothing_moves(self, fake: Fake) -> None:
        done = self.run("birds", "--watch", "--runs", str(fake.root.path))
        assert done.returncode == 0
        assert done.stdout.startswith("birds  6 trials")


class TestCaches:
    @pytest.fixture
    def filling(self, tmp_path: Path) -> Fake:
        parents = {"data": [], "teacher": ["data"], "teacher-cache": ["teacher"], "student": ["teacher-cache"]}
        fake = Fake(Root(tmp_path), parents=parents)
        finish(fake.folder("data"), None)
        finish(fake.folder("teacher"), 0.93)
        return fake

    def test_one_that_is_filled_says_its_blocks_and_the_time_left(self, filling: Fake) -> None:
        folder = filling.folder("teacher-cache")
        claim = begin(folder, time.time() - 100_000, resumed_from=172)
        folder.write_state(step=372, steps=848)
        text = printed("birds", filling.root)
        claim.release()
        row = next(line for line in text.splitlines() if "birds:teacher-cache" in line and "372" in line)
        assert "372/848 blocks" in row
        assert "2 d 18 h" in row, "476 blocks at the 500 s each of this attempt"

    def test_a_filled_one_says_how_fast(self, filling: Fake) -> None:
        finish(filling.folder("teacher-cache"), None, results={"images_per_s": 5234.4, "blocks": 848})
        assert "birds:teacher-cache  5,234 images/s  in 2:00" in printed("birds", filling.root)
        stages = json.loads(printed("birds", filling.root, as_json=True))["stages"]
        found = {stage["stage"]: (stage["unit"], stage["images_per_s"]) for stage in stages}
        assert found == {
            "data": ("rows", None), "teacher": ("steps", None), "teacher-cache": ("blocks", 5234.4),
            "student": ("steps", None),
        }  # fmt: skip

    def test_one_that_was_there_has_no_speed(self, filling: Fake) -> None:
        finish(filling.folder("teacher-cache"), None, results={"images_per_s": 0.0, "blocks": 0})
        assert "birds:teacher-cache  in 2:00" in printed("birds", filling.root)
