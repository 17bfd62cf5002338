"""A program on several gloo ranks of this machine, each of which says `equal` and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

__all__ = ["run_on_ranks"]


def run_on_ranks(program: str, root: Path, *, world: int = 2, within_s: float = 120.0, **environment: str) -> None:
    """Run a program on every rank.

    Args:
        program: Python source; it joins the group itself.
        root: the repository, in which it stands.
        world: how many ranks.
        within_s: how long each may take.
        environment: variables beside those that say who a rank is.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
    } | environment  # fmt: skip
    command = [sys.executable, "-c", program]
    piped = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, cwd=root, env=shared | {"RANK": str(rank)}, **piped) for rank in range(world)]
    try:
        for process in running:
            out, error = process.communicate(timeout=within_s)
            assert out.strip() == "equal", out[-1000:] + error[-3000:]
    finally:
        for process in running:
            process.kill()
