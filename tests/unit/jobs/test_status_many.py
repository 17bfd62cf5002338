"""Three hundred students in all states: one screen, causes together, what is slow and why, and the same as JSON."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kdscale.jobs import status
from kdscale.jobs.overview import SweepView
from kdscale.jobs.siblings import slow
from kdscale.pipeline.artifacts import Root, StageFolder
from tests.fake_sweeps import Fake, begin, finish, log

ROOT = Path(__file__).resolve().parents[3]
AXES = {"method": ["ce", "kd", "crd", "at", "fitnet"], "width": [f"w{i}" for i in range(20)], "seed": ["0", "1", "2"]}
FAILURES = (
    "NonFiniteLoss: nan or inf in term crd at step {0},034 on rank {1}",
    "OutOfMemoryError: CUDA out of memory. Tried to allocate {0}.00 MiB",
)
LINES = 40
"""A terminal of an ordinary size."""

Run = Callable[..., None]


@pytest.fixture
def run() -> Iterator[Run]:
    """Make a stage run, here or on a node of another name, until the test is over."""
    claimed = []

    def start(folder: StageFolder, pace: float, node: str = "", data_s: float = 0.005, **attempt: Any) -> None:
        now = time.time()
        claimed.append(begin(folder, now - 1000, **attempt))
        if node:
            path = folder.path / "claim.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"host": node, "heartbeat": now}))
        log(folder, 100, now - 900)
        log(folder, 550, now, train__images_per_s=pace, time__data_s=data_s, time__step_s=0.1, train__loss=1.5)

    yield start
    for claim in claimed:
        claim.release()


@pytest.fixture
def many(tmp_path: Path, run: Run) -> Fake:
    fake = Fake(Root(tmp_path), axes=AXES)
    finish(fake.folder("data"), None)
    finish(fake.folder("teacher"))
    students = [fake.folder("student", m, w, s) for m in AXES["method"] for w in AXES["width"] for s in AXES["seed"]]
    for i, folder in enumerate(students):
        if i < 240:
            finish(folder, 0.8)
        elif i < 252:
            run(folder, 900.0 if i == 245 else 2000.0 + i, f"gpu{i % 4}", 0.07 if i == 245 else 0.005)
        elif i < 259:
            folder.write_state(state="failed", reason=FAILURES[i % 2].format(i, i % 8))
        elif i < 261:
            folder.write_state(state="paused", reason="quota on /lustre/me 140.0/140 GB")
    return fake


def screen(fake: Fake, width: int, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    given = {"as_json": False, "healing": False, **options}
    status.show("birds", fake.root, console, **given)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_three_hundred_stages_are_one_screen(many: Fake, width: int) -> None:
    lines = screen(many, width).splitlines()
    assert len(lines) <= LINES
    assert [line for line in lines if len(line) > width and "→" not in line] == []
    counted = " student x 300  240 done · 39 waiting · 12 running · 2 paused · 7 failed"
    assert counted in lines
    labels = [line.split()[0] for line in lines if re.match(r" [a-z]+ ", line)]
    firsts = list(dict.fromkeys(labels))
    assert firsts == ["planned", "failed", "paused", "slow", "data", "teacher", "student", "running", "waiting", "done"]


def test_failures_are_told_by_cause_not_by_stage(many: Fake) -> None:
    """What differs in steps, ranks and sizes is one cause."""
    failed = [line for line in screen(many, 160).splitlines() if line.startswith(" failed")]
    assert [line[14:].partition(" at ")[0].partition(" Tried")[0] for line in failed] == [
        "4 x student  NonFiniteLoss: nan or inf in term crd",
        "3 x student  OutOfMemoryError: CUDA out of memory.",
    ]


def test_everything_is_listed_when_asked_for(many: Fake) -> None:
    text = screen(many, 120, each=True)
    named = set(re.findall(r"birds:student\[[^]]*\]", text))
    assert len(named) == 300
    assert " more" not in text


def test_all_that_the_screen_says_is_in_the_document(many: Fake) -> None:
    document = json.loads(screen(many, 120, as_json=True))
    assert len(document["stages"]) == 302
    assert [(len(one["stages"]), one["kind"]) for one in document["troubles"]] == [
        (4, "failed"), (3, "failed"), (2, "paused"),
    ]  # fmt: skip
    assert len(document["slow"]) == 1
    assert "waits for data 70% of a step" in document["slow"][0]["words"]
    assert document["waiting"][0]["words"] == "for a free place"


def test_the_documents_entries_are_those_that_are_written_down(many: Fake) -> None:
    document = json.loads(screen(many, 120, as_json=True))
    said = (ROOT / "docs" / "status.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`", said.partition("## Of a stage")[0], re.MULTILINE)) == set(document)
    stage = said.partition("## Of a stage")[2].partition("## Of a job")[0]
    assert set(re.findall(r"^\| `(\w+)`", stage, re.MULTILINE)) == set(document["stages"][0])


class TestSlow:
    @pytest.fixture
    def students(self, tmp_path: Path) -> tuple[Fake, list[StageFolder]]:
        fake = Fake(Root(tmp_path), axes={"seed": [str(i) for i in range(5)]})
        return fake, [fake.folder("student", str(i)) for i in range(5)]

    def said(self, fake: Fake) -> list[str]:
        return [one.words for one in slow(SweepView(fake.sweep, fake.root))]

    def test_a_slow_node_is_named_as_such(self, students: tuple[Fake, list[StageFolder]], run: Run) -> None:
        fake, folders = students
        for folder, node, pace in zip(folders, ("a", "b", "c", "d", "d"), (1000, 1010, 1020, 300, 310), strict=True):
            run(folder, pace, node)
        assert self.said(fake) == [
            f"on d: {share} x the speed of its siblings (so is the 1 other on this node: it is the node)"
            for share in ("0.30", "0.31")
        ]

    def test_another_device_a_shared_node_and_many_attempts_are_named(
        self, students: tuple[Fake, list[StageFolder]], run: Run
    ) -> None:
        fake, folders = students
        run(folders[0], 400, "t4", device="cuda (T4)")
        for folder, node in zip(folders[1:], "abcc", strict=True):
            run(folder, 1000, node, device="cuda (A100)")
        (said,) = self.said(fake)
        assert "runs on cuda (T4), most siblings on cuda (A100)" in said

    def test_what_cannot_be_known_is_said_to_be_unknown(
        self, students: tuple[Fake, list[StageFolder]], run: Run
    ) -> None:
        fake, folders = students
        for folder, node, pace in zip(folders, "abcde", (1000, 1000, 1000, 1000, 200), strict=True):
            run(folder, pace, node)
        assert self.said(fake) == ["on e: 0.20 x the speed of its siblings (nothing logged tells why)"]
