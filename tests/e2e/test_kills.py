"""Whatever is killed, and whenever: the same command again gives bitwise the same weights and whole metrics."""

from __future__ import annotations

import os
import signal

import pytest

from kdscale.jobs.local import LocalRun
from tests.e2e.conftest import Make, Sandbox
from tests.plugins.drowsy import SLOW_STUDENT


class KillAt:
    """Sends a signal to workers of the student when its metrics have come to certain steps."""

    def __init__(self, steps: list[int], number: signal.Signals, *, only_rank: int | None = None) -> None:
        self.steps, self.number, self.only_rank = list(steps), number, only_rank
        self.killed = 0

    def __call__(self, local: LocalRun, sandbox: Sandbox) -> None:
        pids = local.workers().get("student", [])
        if not self.steps or not pids or sandbox.last_step("student") < self.steps[0]:
            return
        self.steps.pop(0)
        self.killed += 1
        for rank, pid in enumerate(pids):
            if self.only_rank in (None, rank):
                os.kill(pid, self.number)


CASES = [
    pytest.param(1, 1, [8], signal.SIGKILL, None, id="one-rank"),
    pytest.param(1, 1, [8, 16], signal.SIGKILL, None, id="twice-in-one-epoch"),
    pytest.param(2, 1, [12], signal.SIGKILL, 1, id="one-of-two-ranks"),
    pytest.param(2, 2, [24], signal.SIGKILL, None, id="two-ranks-accumulating"),
    pytest.param(2, 1, [8, 28], signal.SIGTERM, None, id="asked-to-stop"),
]


@pytest.mark.parametrize(("world", "accumulation", "steps", "number", "only_rank"), CASES)
def test_bitwise_the_same_after_kills(
    sandbox: Make, world: int, accumulation: int, steps: list[int], number: signal.Signals, only_rank: int | None
) -> None:
    overrides = [f"engine.processes={world}", f"train.accumulation={accumulation}", *SLOW_STUDENT]
    calm, disturbed = sandbox("calm", *overrides), sandbox("disturbed", *overrides)
    assert set(calm.run().values()) == {"done"}

    kill = KillAt(steps, number, only_rank=only_rank)
    assert set(disturbed.run(kill).values()) == {"done"}

    assert kill.killed == len(steps)
    assert len(disturbed.folder("student").state()["attempts"]) == 1 + len(steps)
    assert disturbed.weights("student") == calm.weights("student")
    assert disturbed.metrics("student") == calm.metrics("student")
    assert disturbed.folder("student").state()["results"]["top1"] == calm.folder("student").state()["results"]["top1"]
