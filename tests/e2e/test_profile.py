"""Profiles of real stages: asked for before they begin or while they run, on one rank and on two, changing nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdscale.jobs.local import LocalRun
from kdscale.pipeline.profiles import Profiles
from kdscale.report.grid import render
from kdscale.report.profiles import BARS, PHASES, profile_figure, profile_grid, profile_of
from kdscale.train.stage import STATE_EVERY_S
from tests.e2e.conftest import Make, Sandbox
from tests.plugins.drowsy import SLOW_STUDENT

ONCE = {"data", "teacher", "student", "losses", "backward", "optimizer", "tracking", "checkpoint", "other"}


class AskAt:
    """Asks for a profile of the student when it has come to a step.

    The stage is held meanwhile until it is time for it to look, so that however fast a machine is it looks in time.
    """

    def __init__(self, step: int) -> None:
        self.step, self.asked = step, False

    def __call__(self, local: LocalRun, box: Sandbox) -> None:
        if not self.asked and local.workers().get("student") and box.last_step("student") >= self.step:
            self.asked = True
            (worker,) = local.workers()["student"]
            os.kill(worker, signal.SIGSTOP)
            Profiles(box.folder("student").path).ask(4)
            time.sleep(STATE_EVERY_S)
            os.kill(worker, signal.SIGCONT)


def measured(box: Sandbox, name: str = "student") -> list[dict[str, Any]]:
    profile = profile_of(box.folder(name).path, name)
    return [*profile.ranks] if profile else []


@pytest.mark.parametrize("world", [1, 2])
def test_a_profile_changes_nothing_and_adds_up(sandbox: Make, world: int) -> None:
    calm, looked_at = (sandbox(name, f"engine.processes={world}") for name in ("calm", "looked_at"))
    for name in ("teacher", "student"):
        Profiles(looked_at.folder(name).path).ask(4)
    assert set(calm.run().values()) == set(looked_at.run().values()) == {"done"}

    assert looked_at.weights("student") == calm.weights("student")
    assert looked_at.metrics("student") == calm.metrics("student")
    ranks = measured(looked_at)
    assert [rank["rank"] for rank in ranks] == list(range(world))
    for rank in ranks:
        assert set(rank["phases_s"]) == ONCE | ({"all_reduce"} if world > 1 else set())
        assert sum(rank["phases_s"].values()) == pytest.approx(rank["step_s"])
        assert rank["steps"] >= 4
        assert rank["world"] == world
    assert "teacher" not in measured(looked_at, "teacher")[0]["phases_s"]
    assert Profiles(looked_at.folder("student").path).wish() is None
    assert not measured(calm)


def test_the_trace_has_the_phases_and_their_operators(sandbox: Make) -> None:
    box = sandbox()
    Profiles(box.folder("student").path).ask(4)
    box.run()

    profile = profile_of(box.folder("student").path, "student")
    assert profile is not None
    events = json.loads(profile.traces[0].read_text())["traceEvents"]
    names = [event.get("name") for event in events]
    assert names.count("backward") == 3
    assert {"teacher", "losses", "aten::convolution"} <= set(names)


def test_a_running_stage_can_be_asked_and_goes_on(sandbox: Make) -> None:
    slow = ["stages.student.train.epochs=4", *SLOW_STUDENT]
    calm, asked = sandbox("calm", *slow), sandbox("asked", *slow)
    ask = AskAt(8)
    assert set(calm.run().values()) == set(asked.run(ask).values()) == {"done"}

    assert ask.asked
    assert measured(asked)[0]["first_step"] > 8
    assert asked.weights("student") == calm.weights("student")


def test_a_stage_too_short_says_so(sandbox: Make) -> None:
    box = sandbox("runs", "data.options.train_rows=100", "stages.student.train.epochs=1")
    Profiles(box.folder("student").path).ask()
    assert set(box.run().values()) == {"done"}

    log = (box.folder("student").logs / "attempt1-rank0.log").read_text()
    assert "too short to be profiled" in log
    assert Profiles(box.folder("student").path).wish() is None


def test_what_rests_is_refused_and_what_is_drawn_names_every_phase(sandbox: Make, tmp_path: Path) -> None:
    box = sandbox()
    Profiles(box.folder("student").path).ask(4)
    box.run()

    command = [sys.executable, "launch/logs.py", str(box.folder("student").path), "--profile", "5"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert refused.returncode == 1
    assert "does not run (done)" in refused.stderr
    assert Profiles(box.folder("student").path).wish() is None

    profile = profile_of(box.folder("student").path, "student")
    assert profile is not None
    shown = render(profile_grid([profile]), "md")
    assert all(word in shown for phase, word in PHASES.items() if phase != "all_reduce")
    assert "no mathematics" in shown
    drawn = profile_figure([profile])
    assert all(f"student: {word}" in drawn for word in BARS if word != "all-reduce")
