"""A search as a user gives it: killed in the middle it loses and repeats nothing; what is far behind is stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kdscale.pipeline.artifacts import Root
from tests.plugins.drowsy import SLOW_STUDENT
from tests.small_search import asked_in, written

ROOT = Path(__file__).resolve().parents[2]
FEWER = ("sweep.trials=3", "stages.student.train.epochs=4")


def command(tmp_path: Path, *arguments: str) -> list[str]:
    start = [sys.executable, str(ROOT / "launch" / "sweep.py"), str(written(tmp_path)), *SLOW_STUDENT, *FEWER]
    return [*start, *arguments, "--runs", str(tmp_path / "runs")]


def wait_until(true: Callable[[], bool], within_s: float = 200.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def folder_of(tmp_path: Path) -> Path:
    found = list((tmp_path / "runs" / "sweeps").glob("hunt-*"))
    return found[0] if found else tmp_path


def test_a_killed_search_goes_on_and_prunes(tmp_path: Path) -> None:
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: [one["state"] for one in asked_in(folder_of(tmp_path))] == ["complete", "open"])
    finally:
        first.kill()
        first.wait()
    before = asked_in(folder_of(tmp_path))

    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=250)

    assert done.returncode == 0, done.stdout + done.stderr
    asked = asked_in(folder_of(tmp_path))
    assert [one["trial"] for one in asked] == ["t0", "t1", "t2"]
    assert [one["values"] for one in asked[:2]] == [one["values"] for one in before]
    assert "best t0" in done.stdout
    check_the_journal_against_the_results(folder_of(tmp_path))
    check_pruned_stages(folder_of(tmp_path))


def check_the_journal_against_the_results(folder: Path) -> None:
    rows = [row for row in json.loads((folder / "results.json").read_text()) if row["stage"] == "student"]
    best = max((row for row in rows if row["state"] == "done"), key=lambda row: row["best_top1"])
    assert best["trial"] == {"trial": "t0"}
    assert [row["trial"]["trial"] for row in rows] == ["t0", "t1", "t2"]
    plan = json.loads((folder / "plan.json").read_text())
    swept = [trial["swept"] for trial in plan["trials"]]
    assert swept == [one["values"] for one in asked_in(folder)]
    assert len({trial["stages"]["teacher"] for trial in plan["trials"]}) == 1


def check_pruned_stages(folder: Path) -> None:
    asked, plan = asked_in(folder), json.loads((folder / "plan.json").read_text())
    pruned = [one["trial"] for one in asked if one["state"] == "pruned"]
    assert pruned
    root = Root(folder.parent.parent)
    for trial in (trial for trial in plan["trials"] if trial["axes"]["trial"] in pruned):
        stage = root.stage(trial["stages"]["student"])
        assert stage is not None
        state = stage.state()
        assert state["state"] == "cancelled"
        assert state["reason"].startswith("pruned by the search at epoch ")
        assert 0 < state["step"] < 80
    page = (folder / "report.html").read_text()
    assert "What failed" not in page
    assert "stopped early" in page
