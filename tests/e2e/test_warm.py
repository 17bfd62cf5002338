"""Workers that are forked from a warm parent are as fresh as processes that import everything themselves."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.e2e.conftest import Make, Sandbox


def run_cold(box: Sandbox, port: int) -> None:
    """Each stage in a process of its own, which nobody has prepared."""
    for number, stage in enumerate(box.plan.stages.values()):
        environment = os.environ | {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port + number), "KDSCALE_ATTEMPT": "1",
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        }  # fmt: skip
        command = [sys.executable, "-m", "kdscale.jobs.stage_job", str(box.root.path), stage.digest]
        subprocess.run(command, check=True, env=environment, capture_output=True)


def test_a_used_parent_s_workers_come_to_the_weights_of_cold_processes(sandbox: Make) -> None:
    warm, again, cold = (sandbox(name, "engine.processes=1") for name in ("warm", "again", "cold"))
    assert set(warm.run().values()) == set(again.run().values()) == {"done"}, "the second by a parent that was used"
    run_cold(cold, 21000 + os.getpid() % 9000)

    for name in ("teacher", "student"):
        assert warm.weights(name) == again.weights(name) == cold.weights(name)
        assert warm.metrics(name) == again.metrics(name) == cold.metrics(name)
