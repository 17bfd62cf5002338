"""What a launch leaves beside the plan, so that a sweep can be explained and repeated: its code, and what it runs on.

    runs/sweeps/<name>-<digest8>/    code.zip (kdscale/  plugins/  dirty.diff)    software.json

Of several launches of one sweep the last one counts.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import platform
import re
import subprocess
from pathlib import Path

import kdscale
from kdscale import atomic
from kdscale.jobs.slurm.snapshot import code_of
from kdscale.pipeline.planned import Plan
from kdscale.report.archive import pack

__all__ = ["packages", "record_launch", "torch_cuda"]

DIFF_BYTES = 1 << 20
GIT_S = 10.0
_DRIVER = Path("/proc/driver/nvidia/version")


def record_launch(folder: Path, plan: Plan) -> None:
    """Write code.zip and software.json into a sweep's folder, where they are not there already as they are now."""
    package = Path(kdscale.__file__).resolve().parent
    files = {str(place): source.read_bytes() for place, source in code_of(plan)}
    commit = _git(package, "rev-parse", "HEAD").strip()
    dirty = _git(package, "diff", "HEAD", "--", ".") if commit else ""
    if dirty:
        files["dirty.diff"] = dirty.encode()[:DIFF_BYTES]
    _write_if_new(folder / "code.zip", pack(files))
    software = {
        "schema": 1, "kdscale": kdscale.__version__, "commit": commit or None, "dirty": bool(dirty),
        "python": platform.python_version(), "system": platform.system(), "machine": platform.machine(),
        "cuda": torch_cuda(), "driver": _driver(), "packages": packages(),
    }  # fmt: skip
    _write_if_new(folder / "software.json", atomic.as_json(software).encode())


def packages() -> dict[str, str]:
    """Version of each installed package by name, as `pip freeze` has it."""
    found = {str(one.metadata["Name"]): one.version for one in importlib.metadata.distributions()}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, read without importing it; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    for node in ast.parse(path.read_text(encoding="utf-8")).body if path and path.is_file() else ():
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if target is not None and ast.unparse(target) == "cuda" and isinstance(value, ast.Constant):
            return None if value.value is None else str(value.value)
    return None


def _driver() -> str | None:
    """Version of NVIDIA's driver; None where there is none."""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", _DRIVER.read_text()) if _DRIVER.is_file() else None
    return found[1] if found else None


def _git(folder: Path, *arguments: str) -> str:
    """What git says of kdscale's own files; nothing where they are no checkout, or there is no git."""
    if not (folder.parent / ".git").exists():
        return ""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.decode(errors="replace")


def _write_if_new(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        atomic.write_bytes(path, content)
