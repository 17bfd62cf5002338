"""The first hour of a stranger: what README says, typed in its order, with the slips that people make.

Whatever is needed next stands in README, in `--help` or on the screen before. Slow machines: `-s` prints the minutes.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.matrix import LONG
from tests.unit.data.places import FASHION

ROOT = Path(__file__).resolve().parents[2]
FEWER = (
    "data.limit=1280", "data.limit_test=500", "train.batch_size=64",
    *(f"stages.{name}.train.epochs=1" for name in ("teacher", "assistant", "student")),
)  # fmt: skip
"""What makes the demo a matter of seconds; `make test-long` runs it as it is, with an installation of its own."""
NETS = '''\
import time

from torch import nn


class Small(nn.Module):
    """My own network; trains slowly enough to be interrupted."""

    def __init__(self, classes, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        if self.training:
            time.sleep(0.02)
        return self.head(self.body(x).mean((2, 3)))
'''
CONFIG = """\
extends: kdscale:base/fashion_mnist.yaml
name: mine
plugins: {path: [.], allow: [nets]}
data: {limit: 1280, limit_test: 500}
train: {epoch: 6, batch_size: 64, checkpoint_every_steps: 10}
stages:
  teacher:
    student: {model: resnet_cifar, depth: 8}
    losses: [{name: ce}]
    train: {epochs: 1}
  student:
    student: {model: "nets:Small", width: 8}
    teachers: {t: {from: teacher}}
    losses: [{name: ce, weight: 0.1}, {name: kd, weight: 0.9, temperature: 4}]
"""

pytestmark = pytest.mark.skipif(not FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")


class Stranger:
    """Somebody with a terminal: types commands, reads what they say."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.python = str(clone / ".venv" / "bin" / "python")
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "TERM", "LANG", "KDSCALE_DATA") if name in os.environ
        }
        # an environment that others share has its own kdscale in it: here it is the clone's that is meant
        self.environment = kept | ({} if LONG else {"PYTHONPATH": str(clone)})
        self.minutes: dict[str, float] = {}

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.minutes[what] = round((time.monotonic() - begun) / 60, 2)

    def types(self, command: str, folder: Path, *, exit: int = 0) -> str:
        """One line in a folder, to its end; returns all that it said."""
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=self.environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == exit, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    """With a clone; its installation is this one's, but in `make test-long`."""
    clone = tmp_path / "kdscale"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    if not LONG:
        (clone / ".venv").symlink_to(Path(sys.prefix))
    return Stranger(clone)


def test_the_first_hour(stranger: Stranger, tmp_path: Path) -> None:
    with stranger.doing("demo"):
        see_the_demo(stranger)
    mine = tmp_path / "garments"
    mine.mkdir()
    (mine / "nets.py").write_text(NETS)
    with stranger.doing("own config, with a typo"):
        slip_and_mend(stranger, mine)
    with stranger.doing("interrupted, and again"):
        interrupt_and_go_on(stranger, mine)
    with stranger.doing("look at what came out"):
        look_around(stranger, mine)
    with stranger.doing("take the network along"):
        take_it_along(stranger, mine)
    print(stranger.minutes, "minutes")  # noqa: T201


def see_the_demo(stranger: Stranger) -> None:
    assert "make demo" in stranger.types("make help", stranger.clone)
    if LONG:
        said = stranger.types("make demo", stranger.clone)
    else:
        command = stranger.types("make -n demo", stranger.clone).splitlines()[-1]
        assert command == ".venv/bin/python launch/sweep.py configs/quickstart.yaml", "what README shows"
        said = stranger.types(" ".join([command, *FEWER]), stranger.clone)
    for stage in ("teacher", "assistant", "student"):
        assert re.search(rf"^{stage} +[\d.]+ K", said, re.M), "a row of its table"
    (page,) = re.findall(r"^report +(\S+)", said, re.M)
    assert Path(page).read_text().count("<svg") >= 2
    assert re.search(r"^look +\S*python launch/track\.py ui --runs", said, re.M)


def slip_and_mend(stranger: Stranger, mine: Path) -> None:
    sweep = f"{stranger.python} {stranger.clone}/launch/sweep.py"
    config = mine / "mine.yaml"
    config.write_text(CONFIG)
    said = stranger.types(f"{sweep} mine.yaml --dry-run", mine, exit=2)
    assert said.strip().splitlines() == [said.strip()], "one line, and no traceback"
    assert "mine.yaml:5" in said
    assert "train.epoch" in said
    assert "did you mean epochs" in said
    config.write_text(CONFIG.replace("epoch: 6", "epochs: 6"))
    assert "did you mean" in stranger.types(f"{sweep} mine.yaml train.lrr=0.1 --dry-run", mine, exit=2)
    assert "did you mean mine.yaml" in stranger.types(f"{sweep} mien.yaml", mine, exit=2)
    planned = stranger.types(f"{sweep} mine.yaml --dry-run", mine)
    assert "3 unique stages: 3 to run" in planned
    assert sorted(path.name for path in mine.iterdir() if path.name != "__pycache__") == ["mine.yaml", "nets.py"]


def interrupt_and_go_on(stranger: Stranger, mine: Path) -> None:
    command = [stranger.python, f"{stranger.clone}/launch/sweep.py", "mine.yaml"]
    with subprocess.Popen(
        command, cwd=mine, env=stranger.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as sweep:
        deadline = time.monotonic() + 180
        while not any(path.stat().st_size for path in mine.glob("runs/stages/student-*/metrics.jsonl")):
            assert time.monotonic() < deadline, "the student never began"
            time.sleep(0.1)
        sweep.send_signal(signal.SIGINT)
        said, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 1, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    said = stranger.types(shlex.join(command), mine)
    assert re.search(r"student running, resumed at step \d+", said), said
    assert "teacher running" not in said, "what was done stays done"


def look_around(stranger: Stranger, mine: Path) -> None:
    launch = f"{stranger.python} {stranger.clone}/launch"
    assert "done 3" in stranger.types(f"{launch}/status.py", mine)
    said = stranger.types(f"{launch}/sweep.py mine.yaml stages.student.train.lr=0.01 --explain", mine)
    assert re.search(r"student +(?!reused).*lr", said, re.S), said
    said = stranger.types(f"{launch}/report.py mine", mine)
    (page,) = re.findall(r"^report +(\S+)", said, re.M)
    assert "nets:Small" in Path(page).read_text()


def take_it_along(stranger: Stranger, mine: Path) -> None:
    said = stranger.types(f"{stranger.python} {stranger.clone}/launch/export.py mine:student", mine)
    (folder,) = (mine / "exports").iterdir()
    assert said.splitlines()[0] == f"exports/{folder.name}/"
    assert re.search(r"checked +model\.onnx.*same class 100\.00 %", said), said
    answer = stranger.types(f"{stranger.python} {folder}/use_me.py {folder}/example.png", tmp := folder.parent)
    assert re.search(r"example\.png  [\w/ -]+ 0\.\d{3}", answer), (tmp, answer)
