"""Versions of what kdscale stands on, what is missing, and what it would be for.

Torch and FFCV are imported in child processes: a build that does not suit the processor, or lacks a
library, may end the process that imports it, and the doctor must live to say so. Of the others the
metadata is read, since importing all of them takes many seconds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

from kdscale.doctor.findings import Finding

__all__ = ["NEEDED", "OPTIONAL", "PYTHON", "examine_software"]

PYTHON = (3, 10)

NEEDED = {  # as pyproject.toml has them; a test compares
    "torch": "2.6",
    "numpy": "1.26",
    "numba": "0.60",
    "pydantic": "2.9",
    "PyYAML": "6",
    "jaxtyping": "0.2.36",
    "rich": "13.7",
    "Jinja2": "3.1",
    "matplotlib": "3.8",
    "pillow": "10",
    "scipy": "1.11",
    "safetensors": "0.4.5",
    "xxhash": "3.4",
    "filelock": "3.13",
    "tenacity": "8.2",
    "psutil": "5.9",
    "submitit": "1.5.2",
}

OPTIONAL = {  # package: (what it is for, extra of pyproject.toml that brings it)
    "ffcv": ("faster loading; the torch loader gives the same batches of raw data", "ffcv"),
    "mlflow": ("comparing runs in a browser; metrics are recorded without it", "mlflow"),
    "deepspeed": ("engine.name: deepspeed", "deepspeed"),
    "onnxruntime": ("checking an exported ONNX file", "export"),
    "optuna": ("sweeps with method: optuna", "search"),
    "torchvision": ("models named torchvision:...", "vision"),
    "timm": ("models named timm:...", "vision"),
    "scikit-learn": ("the digits data set", "digits"),
}

_ALWAYS = frozenset({"ffcv", "mlflow"})
"""Extras that the install script brings without being asked."""

SHOWN = ("torch", "submitit")
"""Needed packages that have a line even when all is well."""

_IMPORT_S = 120.0

_ASK_TORCH = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
ask = lambda name: bool(getattr(torch.cpu, name, lambda: False)())
cpu = [n for n in ("amx_tile", "avx512_bf16") if ask(f"_is_{n}_supported")]
bf16 = (["cuda"] if torch.cuda.is_bf16_supported() else []) if gpus else cpu
print(json.dumps({"version": torch.__version__, "gpus": gpus, "cuda": torch.version.cuda, "bf16": bf16}))
"""
_ASK_FFCV = "import ffcv.loader, ffcv.writer"


def examine_software() -> Iterator[Finding]:
    """Look at Python, the packages that training needs, and those that add to it."""
    yield _python()
    with ThreadPoolExecutor(2) as pool:
        torch, ffcv = pool.submit(_torch), pool.submit(_ffcv)
        yield torch.result()
        yield ffcv.result()
    yield from (_needed(name) for name in NEEDED if name != "torch" and _is_worth_a_line(name))
    yield from (_optional(name) for name in OPTIONAL if name != "ffcv")


def _python() -> Finding:
    details = {"executable": sys.executable, "platform": platform.platform(), "cores": _cores()}
    fits = sys.version_info >= PYTHON
    mend = "" if fits else f"kdscale needs Python {'.'.join(map(str, PYTHON))} or newer: PYTHON=... make setup"
    text = f"{platform.python_version()} · {_cores()} cores · {platform.system()} {platform.machine()}"
    return Finding("software", "python", "ok" if fits else "broken", text, mend, needed=True, details=details)


def _torch() -> Finding:
    finding = _needed("torch")
    if finding.state != "ok":
        return finding
    code, out, error = _child(_ASK_TORCH)
    if code:
        mend = "it is installed but cannot be imported; install a build that suits this machine"
        return Finding("software", "torch", "broken", f"{finding.text} ({error})", mend, needed=True)
    answer = json.loads(out)
    gpus = f"{len(answer['gpus'])} x {answer['gpus'][0]}" if answer["gpus"] else "no GPU"
    bf16 = f"bf16: yes, {answer['bf16'][0]}" if answer["bf16"] else "bf16: emulated and slow, so fp32 is used"
    return Finding("software", "torch", "ok", f"{answer['version']} · {gpus} · {bf16}", needed=True, details=answer)


def _ffcv() -> Finding:
    finding = _optional("ffcv")
    if finding.state == "missing":
        lacking = _lacking_for_ffcv()
        text = f"MISSING ({', '.join(lacking)})" if lacking else "MISSING"
        return Finding("software", "ffcv", "missing", text, finding.mend, details={"lacking": lacking})
    code, _, error = _child(_ASK_FFCV)
    if code:
        mend = "data.loader: auto uses the torch loader, with the same batches of raw data; `make setup` builds it anew"
        return Finding("software", "ffcv", "broken", f"{finding.text} BROKEN ({error})", mend)
    return finding


def _needed(name: str) -> Finding:
    version = _version(name)
    if version is None:
        mend = f"kdscale needs {name} >= {NEEDED[name]}: `make setup` brings it"
        return Finding("software", name, "missing", "MISSING", mend, needed=True)
    if _numbers(version) < _numbers(NEEDED[name]):
        mend = f"kdscale needs {name} >= {NEEDED[name]}: `make setup` brings it"
        return Finding("software", name, "broken", f"{version} TOO OLD", mend, needed=True)
    return Finding("software", name, "ok", version, needed=True, details={"version": version})


def _is_worth_a_line(name: str) -> bool:
    return name in SHOWN or _needed(name).state != "ok"


def _optional(name: str) -> Finding:
    version = _version(name)
    if version is not None:
        return Finding("software", name, "ok", version, details={"version": version})
    purpose, extra = OPTIONAL[name]
    how = "make setup" if extra in _ALWAYS else f"./install.sh {extra}"
    return Finding("software", name, "missing", "MISSING", f"only for {purpose} ({how})")


def _lacking_for_ffcv() -> list[str]:
    """List what FFCV would be built with and is not here; install.sh knows their packages."""
    lacking = [] if any(map(shutil.which, ("g++", "c++", "clang++"))) else ["no C++ compiler"]
    if not shutil.which("pkg-config"):
        return [*lacking, "no pkg-config"]
    for library in ("opencv4", "libturbojpeg"):
        found = subprocess.run(["pkg-config", "--exists", library], check=False, capture_output=True)
        lacking += [f"{library}.pc not found"] if found.returncode else []
    return lacking


def _child(code: str) -> tuple[int, str, str]:
    """Run Python code in a process of its own: (exit code, what it printed, what went wrong in a line)."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"no answer in {_IMPORT_S:.0f} s"
    if run.returncode < 0:
        return run.returncode, "", f"importing it ends the process with signal {-run.returncode}"
    lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
    return run.returncode, run.stdout, lines[-1]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
