"""A rank that hangs is noticed, named, and ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.jobs.hang import hung_rank
from kdscale.jobs.stage_job import HUNG

BUSY = {"step": 8, "boundaries": 8, "waits_for_others": False, "host": "n1"}
WAITS = {"step": 8, "boundaries": 8, "waits_for_others": True, "host": "n1"}
BEHIND = {"step": 7, "boundaries": 7, "waits_for_others": True, "host": "n2"}


@pytest.mark.parametrize(
    ("notes", "rank"),
    [([WAITS, BUSY, WAITS], 1), ([WAITS, None], 1), ([None, WAITS], 0), ([WAITS, BEHIND, WAITS], 1), ([BUSY], 0)],
)
def test_the_rank_that_others_wait_for(notes: list[dict[str, object] | None], rank: int) -> None:
    assert hung_rank(dict(enumerate(notes)))[0] == rank


SCRIPT = """
import sys, time
from pathlib import Path
from kdscale.jobs.hang import Guard
from kdscale.train.stop import Stop
stop = Stop()
Guard(Path(sys.argv[1]), stop, 3, 0, 1, 0.6).start()
def work():
    for step in range(8):
        time.sleep(0.15)
        stop.step = step
        stop.agreed(step)
def get_stuck():
    while True:
        pass
work()
print("worked", flush=True)
{}
"""


def guarded(logs: Path, stuck: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT.format(stuck), str(logs)], capture_output=True, text=True)


def test_it_leaves_its_stacks_its_step_and_an_exit_code(tmp_path: Path) -> None:
    """And not before: what goes on, however slowly, is left alone."""
    done = guarded(tmp_path, "get_stuck()")
    assert done.returncode == HUNG, done.stderr
    assert "worked" in done.stdout
    assert "in get_stuck" in done.stderr
    cause = json.loads((tmp_path / "attempt3-rank0.error.json").read_text())
    assert cause["kind"] == "RankHung"
    assert cause["message"].startswith("rank 0 hangs at step 7")


def test_a_process_that_cannot_run_python_ends_too(tmp_path: Path) -> None:
    """As in a library's own loop that keeps the interpreter's lock."""
    done = guarded(tmp_path, "import ctypes; ctypes.PyDLL(None).sleep(60)")
    assert done.returncode == 1
    assert "Timeout" in done.stderr
