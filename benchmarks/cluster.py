"""The SLURM of two nodes on this machine, for the benchmarks that need one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import REPOSITORY

__all__ = ["control", "local_cluster", "shell", "submit", "why_not"]

CLUSTER = REPOSITORY / "slurm" / "local-cluster" / "cluster.sh"
PROFILE = REPOSITORY / "slurm" / "profiles" / "local-cluster.yaml"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SBIN = "/usr/sbin:/sbin"


def why_not() -> str | None:
    """What a cluster lacks here; None when it can be had."""
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        return f"no SLURM here ({', '.join(missing)}): make test-slurm installs it"
    return "nodes that can be lost need root" if os.geteuid() else None


@contextmanager
def local_cluster() -> Iterator[None]:
    """Up while the block runs, in a folder and on ports of its own."""
    before = dict(os.environ)
    with socket.socket() as probe:  # twenty ports in a row, below those that the kernel gives away
        probe.bind(("127.0.0.1", 0))
        port = 12000 + probe.getsockname()[1] % 4000
    with tempfile.TemporaryDirectory(prefix="kdscale-bench-", dir="/tmp") as folder:
        os.environ |= {
            "KDSCALE_CLUSTER": folder, "KDSCALE_CLUSTER_PORT": str(port), "PATH": f"{before['PATH']}:{SBIN}",
            "SLURM_CONF": str(Path(folder) / "etc" / "slurm.conf"),
        }  # fmt: skip
        try:
            control("up")
            yield
        finally:
            control("down")
            os.environ.clear()
            os.environ.update(before)


def control(*command: str) -> None:
    """Run cluster.sh."""
    done = subprocess.run([CLUSTER, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cluster.sh {' '.join(command)}: {done.stdout}")


def shell(*command: str) -> str:
    """Run a command; returns what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])}: {done.stdout}{done.stderr}")
    return done.stdout


def submit(config: Path, root: Path, *overrides: str) -> None:
    """`launch/sweep.py --detach` as a user calls it."""
    command = [sys.executable, str(REPOSITORY / "launch" / "sweep.py"), str(config), *overrides]
    shell(*command, "--cluster", str(PROFILE), "--runs", str(root), "--detach", "--yes")
