"""What goes wrong around a sweep: killed and stopped launchers, two at once, full disks, stages that fail, typos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from kdscale.jobs.local import LocalRun
from kdscale.jobs.prepare import prepare_folders
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.e2e.conftest import EXPERIMENT, Make, Sandbox
from tests.matrix import LONG
from tests.plugins.drowsy import SLOW_STUDENT
from tests.unit.checkpoint.disk import small_disk

REPOSITORY = Path(__file__).resolve().parents[2]
SLOW = ("train.epochs=2", *SLOW_STUDENT)
"""Steps long enough to be hit in the middle, and few of them."""
PATIENCE_S = 120.0


# --------------------------------------------------------------------------- the command itself


@dataclass
class Launched:
    """One `python launch/sweep.py` in a session of its own, as a terminal would have it."""

    process: subprocess.Popen[str]
    runs: Path

    def wait(self) -> tuple[int, str]:
        """Exit code, and what it printed."""
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, self.wait()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        """The launcher and everything that it has started."""
        launcher = psutil.Process(self.process.pid)
        return [launcher, *launcher.children(recursive=True)]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Start the small sweep; whatever still runs after the test is ended."""
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(EXPERIMENT))
    begun: list[Launched] = []

    def start(*arguments: str, runs: Path = tmp_path / "runs", track: bool = False) -> Launched:
        command = [sys.executable, "launch/sweep.py", str(config), *SLOW, "--runs", str(runs), *arguments]
        command += [] if track else ["tracking.uri=off"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        begun.append(Launched(process, runs))
        return begun[-1]

    yield start
    for launched in begun:
        if launched.process.poll() is None:
            launched.process.kill()
            launched.process.wait()
        assert launched.process.stdout is not None
        launched.process.stdout.close()


def folders(runs: Path) -> dict[str, StageFolder]:
    return {folder.name: folder for folder in Root(runs).stages()}


def step_of(runs: Path, name: str) -> int:
    """By its metrics, which say it sooner than the state that a stage writes once a second."""
    folder = folders(runs).get(name)
    return max(steps_of(folder), default=0) if folder and folder.metrics.exists() else 0


def attempts(runs: Path) -> dict[str, int]:
    return {name: len(folder.state()["attempts"]) for name, folder in folders(runs).items()}


def weights(runs: Path, name: str = "student") -> bytes:
    return (folders(runs)[name].path / "student.safetensors").read_bytes()


def steps_of(folder: StageFolder, metric: str = "train/loss") -> list[int]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line["step"] for line in lines if metric in line["metrics"]]


def gone(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still live after a moment."""
    return psutil.wait_procs(family, timeout=15)[1]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The student's weights where nothing went wrong."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "small.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    command = [
        sys.executable,
        "launch/sweep.py",
        str(folder / "small.yaml"),
        *SLOW,
        "tracking.uri=off",
        "--cluster",
        "inline",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder)}
    command += ["--runs", str(folder / "runs")]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return weights(folder / "runs")


def test_a_killed_launcher_leaves_no_process_and_the_same_command_goes_on(
    launch: Callable[..., Launched], calm: bytes
) -> None:
    first = launch(track=True)
    first.until(lambda: step_of(first.runs, "student") >= 12)
    family = first.family()
    assert len(family) >= 3  # the launcher, the parent of workers, a worker; the shipper where MLflow is
    first.process.send_signal(signal.SIGKILL)
    assert gone(family) == []

    code, out = launch().wait()
    assert code == 0, out
    student = folders(first.runs)["student"].state()
    assert [a["outcome"] for a in student["attempts"]] == ["lost", "done"]
    assert student["attempts"][1]["resumed_from"] >= 7
    assert weights(first.runs) == calm
    found = steps_of(folders(first.runs)["student"])
    assert found == sorted(set(found))

    before = attempts(first.runs)
    code, out = launch().wait()
    assert code == 0, out
    assert attempts(first.runs) == before  # the same command twice runs nothing


def test_ctrl_c_saves_says_how_to_go_on_and_leaves_no_process(launch: Callable[..., Launched], calm: bytes) -> None:
    first = launch()
    first.until(lambda: step_of(first.runs, "student") >= 12)
    family = first.family()
    os.killpg(first.process.pid, signal.SIGINT)  # as a terminal does: to everybody in the foreground
    code, out = first.wait()
    assert code == 1
    assert "the same command goes on from here" in out
    assert "Traceback" not in out
    assert gone(family) == []
    student = folders(first.runs)["student"]
    assert student.state()["state"] == "interrupted"
    saved = max(int(path.name.removeprefix("step_")) for path in student.checkpoints.glob("step_*"))
    assert saved == student.state()["step"] >= 12  # where it was, not where it last happened to save

    code, out = launch().wait()
    assert code == 0, out
    assert weights(first.runs) == calm


def test_ctrl_c_before_anything_runs(launch: Callable[..., Launched]) -> None:
    first = launch()
    first.until(lambda: len(first.family()) > 1)  # it plans, and what will start the workers imports
    family = first.family()
    os.killpg(first.process.pid, signal.SIGINT)
    code, out = first.wait()
    assert code == 130
    assert "Traceback" not in out
    assert gone(family) == []


def test_two_launchers_at_once_make_each_stage_once(launch: Callable[..., Launched], calm: bytes) -> None:
    both = [launch(), launch()]
    for launched in both:
        code, out = launched.wait()
        assert code == 0, out
        assert "failed" not in out
    assert attempts(both[0].runs) == {"data": 1, "teacher": 1, "student": 1}
    assert weights(both[0].runs) == calm


def test_smoke_runs_every_stage_and_leaves_nothing(launch: Callable[..., Launched]) -> None:
    smoked = launch("--smoke")
    code, out = smoked.wait()
    assert code == 0, out
    assert "smoke test passed" in out
    assert not (smoked.runs / "stages").exists()


def test_a_typo_is_one_line_and_writes_nothing(launch: Callable[..., Launched]) -> None:
    wrong = launch("trian.lr=0.1")
    code, out = wrong.wait()
    assert code == 2
    [line] = out.strip().splitlines()
    assert "trian" in line
    assert "train" in line.replace("trian", "")
    assert not wrong.runs.exists()


# --------------------------------------------------------------------------- stages, on warm workers


def stopped_at(sandbox: Sandbox, step: int) -> None:
    """Run until the student is so far, then ask for the end."""

    def stop(local: LocalRun, box: Sandbox) -> None:
        if box.last_step("student") >= step and not local.stopped:
            local.ask_to_stop()

    assert sandbox.run(stop)["student"] == "interrupted"


def again(sandbox: Sandbox) -> dict[str, str]:
    """Run on with a plan of what is left."""
    prepare_folders(sandbox.root, sandbox.plan, retry_failed=False)
    return sandbox.run()


def newest(sandbox: Sandbox) -> Path:
    return max(sandbox.folder("student").checkpoints.glob("step_*"))


def logs(folder: StageFolder) -> str:
    return "".join(path.read_text() for path in sorted(folder.logs.glob("*.log")))


DAMAGES = ["training.safetensors"] + (["manifest.json", "loop.json", "buffers_rank00000.safetensors"] if LONG else [])


@pytest.mark.parametrize("file", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back(sandbox: Make, calm: bytes, file: str) -> None:
    box = sandbox("runs", *SLOW)
    stopped_at(box, 16)
    damaged = newest(box)
    content = bytearray((damaged / file).read_bytes())
    content[len(content) // 3] ^= 0x20
    (damaged / file).write_bytes(content)
    assert again(box)["student"] == "done"
    assert f"CHECKPOINT DAMAGED: {damaged}" in logs(box.folder("student"))
    resumed = box.folder("student").state()["attempts"][1]["resumed_from"]
    assert 0 < resumed < int(damaged.name.removeprefix("step_"))
    assert box.weights("student") == calm


WORLDS = [(1, 2)] + ([(2, 1), (4, 2), (2, 4)] if LONG else [])


@pytest.mark.parametrize(("first", "then"), WORLDS)
def test_another_world_size_goes_on_and_is_flagged(sandbox: Make, first: int, then: int) -> None:
    stopped_at(sandbox("runs", *SLOW, f"engine.processes={first}"), 16)
    resized = sandbox("runs", *SLOW, f"engine.processes={then}")
    assert resized.run()["student"] == "done"
    student = resized.folder("student")
    attempts = student.state()["attempts"]
    assert [a["world"] for a in attempts] == [first, then]
    assert [a.get("other_world", False) for a in attempts] == [False, True]
    assert attempts[1]["resumed_from"] >= 16
    assert "not bitwise that of an undisturbed run" in logs(student)
    assert steps_of(student) == list(range(4, 41, 4))


@pytest.mark.parametrize("left", [24_576, 0] if LONG else [24_576])
def test_a_full_disk_pauses_the_stage_and_names_the_mend(sandbox: Make, tmp_path: Path, calm: bytes, left: int) -> None:
    """With room for a state but not for a checkpoint; and with none at all, where only the screen can say it."""
    with small_disk(tmp_path / "runs", "24m") as disk:
        box = sandbox("runs", *SLOW)
        ballast = disk / "ballast"

        def fill(local: LocalRun, box: Sandbox) -> None:
            if box.last_step("student") >= 8 and not ballast.exists():
                with ballast.open("wb", buffering=0) as file, suppress(OSError):
                    while file.write(b"x" * 4096):
                        pass
                os.truncate(ballast, ballast.stat().st_size - left)

        assert box.run(fill)["student"] == "paused"
        for place in box.said[-1], *([box.folder("student").state()["reason"]] if left else []):
            assert "no space left on device" in place.lower()
            assert "free some space" in place
        ballast.unlink()
        assert again(box)["student"] == "done"
        assert box.weights("student") == calm
        found = steps_of(box.folder("student"))
        assert found == sorted(set(found))


FAILING = '''
from torch import nn

class Net(nn.Module):
    """Fails at its tenth training batch unless it is told that all is well."""

    def __init__(self, classes: int, flag: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.head = nn.Linear(4, classes)
        self.flag, self.calls = flag, 0

    def forward(self, x):
        from pathlib import Path
        self.calls += self.training and len(x) > 4
        if self.calls == 10 and not Path(self.flag).exists():
            raise RuntimeError("the tenth batch tastes bad")
        return self.head(self.conv(x).relu().mean((2, 3)))
'''


@pytest.fixture
def failing(sandbox: Make, tmp_path: Path) -> tuple[Callable[[], Sandbox], Path]:
    """The student fails; `pupil` learns from it, `bystander` does not."""
    (tmp_path / "bad_taste.py").write_text(FAILING)
    flag = tmp_path / "all-is-well"
    small: dict[str, Any] = {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]}
    pupil = {
        "student": small,
        "teachers": {"t": {"from": "student"}},
        "losses": [{"name": "kd"}],
        "train": {"epochs": 1},
    }
    bystander = {"student": small, "losses": [{"name": "ce"}], "train": {"epochs": 1}}
    overrides = (
        f"stages.student.student={{model: 'bad_taste:Net', flag: {flag}}}",
        f"plugins.path=[{tmp_path}]", "plugins.allow=[bad_taste]",
        f"stages.pupil={json.dumps(pupil)}", f"stages.bystander={json.dumps(bystander)}",
    )  # fmt: skip
    return lambda: sandbox("runs", *overrides), flag


def test_a_failed_stage_blocks_what_needs_it_and_nothing_else(
    failing: tuple[Callable[[], Sandbox], Path],
) -> None:
    make, flag = failing
    box = make()
    assert box.run() == {
        "data": "done", "teacher": "done", "bystander": "done", "student": "failed", "pupil": "blocked"
    }  # fmt: skip
    assert "the tenth batch tastes bad" in box.folder("student").state()["reason"]
    assert "student did not finish" in box.folder("pupil").state()["reason"]
    assert "RuntimeError" in logs(box.folder("student"))

    flag.touch()
    box = make()
    assert box.run() == {
        "data": "done",
        "teacher": "done",
        "bystander": "done",
        "student": "failed",
        "pupil": "blocked",
    }
    assert any("--retry-failed" in said for said in box.said)

    box = make()
    prepare_folders(box.root, box.plan, retry_failed=True)
    assert set(box.run().values()) == {"done"}
    assert len(box.folder("bystander").state()["attempts"]) == 1


def test_a_rate_that_explodes_names_term_and_step_and_saves_nothing_after_it(sandbox: Make) -> None:
    box = sandbox("runs", "stages.student.train.lr=1e6", "stages.student.train.checkpoint_every_steps=1")
    states = box.run()
    assert states["teacher"] == "done"
    assert states["student"] == "failed"
    reason = box.folder("student").state()["reason"]
    assert "became nan or inf" in reason
    step = int(reason.split("step ")[1].split()[0].rstrip(","))
    kept = [int(path.name.removeprefix("step_")) for path in box.folder("student").checkpoints.glob("step_*")]
    assert kept
    assert max(kept) <= step
