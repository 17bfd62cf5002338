"""A search whose trials are jobs: asked for by whoever follows, or by --heal where nobody does."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.drowsy import SLOW_STUDENT
from tests.slurm.conftest import Drill, Make, wait_until
from tests.small_search import EXPERIMENT, SETTINGS, asked_in

TWO_AT_ONCE = EXPERIMENT | {"sweep": SETTINGS | {"parallel": 2}}


def folder_of(box: Drill) -> Path:
    (found,) = (box.root / "sweeps").glob("hunt-*")
    return found


def states(box: Drill) -> list[str]:
    return [one["state"] for one in asked_in(folder_of(box))]


def test_nobody_follows_at_first(drill: Make) -> None:
    box = drill(config=TWO_AT_ONCE)
    done = box.sweep(*SLOW_STUDENT, "sweep.trials=2", "stages.student.train.epochs=3", detach=True)
    assert "status.py --heal" in done.stdout
    assert states(box) == ["open", "open"]

    def healed() -> bool:
        box.heal()
        return "open" not in states(box)

    wait_until(healed, 240)
    assert states(box)[0] == "complete"

    followed = box.sweep(*SLOW_STUDENT, "sweep.trials=4", "stages.student.train.epochs=3")

    assert len(states(box)) == 4
    assert set(states(box)) <= {"complete", "pruned"}
    assert "best t0" in followed.stdout
    assert len(box.stages("teacher")) == 1
    ends = {stage.state()["state"] for stage in box.stages("student")}
    assert ends <= {"done", "cancelled"}
    assert f"{folder_of(box).name}: " not in box.heal()
