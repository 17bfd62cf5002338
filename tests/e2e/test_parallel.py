"""Stages side by side on one machine: each with its share of the cores, never more threads than cores."""

from __future__ import annotations

import os

import pytest

from kdscale.jobs.local import LocalRun
from kdscale.pipeline.artifacts import StageFolder
from tests.e2e.conftest import Make, Sandbox

TWO_STUDENTS = ["seed=0,1", "stages.teacher.seed=0", "engine.processes=1"]


class Busiest:
    """Watches how many training stages are at work at a time, and threads of theirs."""

    def __init__(self) -> None:
        self.stages = self.threads = 0

    def __call__(self, local: LocalRun, box: Sandbox) -> None:
        del local
        newest = [attempts[-1] for folder in trained(box) if (attempts := folder.state().get("attempts"))]
        live = [attempt for attempt in newest if not attempt["ended"]]
        self.stages = max(self.stages, len(live))
        self.threads = max(self.threads, sum(attempt["threads"] * attempt["world"] for attempt in live))


def trained(box: Sandbox) -> list[StageFolder]:
    found = (box.root.stage(digest) for digest, stage in box.plan.stages.items() if stage.kind == "train")
    return [folder for folder in found if folder is not None]


@pytest.mark.parametrize("parallel", [None, 2])
def test_stages_at_once_share_the_cores(sandbox: Make, parallel: int | None) -> None:
    box, cores = sandbox("runs", *TWO_STUDENTS), len(os.sched_getaffinity(0))
    box.parallel, busiest = parallel, Busiest()

    assert set(box.run(busiest).values()) == {"done"}

    threads = {attempt["threads"] for folder in trained(box) for attempt in folder.state()["attempts"]}
    assert threads == {max(1, cores // (parallel or 1))}
    assert busiest.stages == (parallel or 1)
    assert busiest.threads <= max(cores, busiest.stages)
