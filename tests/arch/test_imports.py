"""What starts fast: the package and every command line load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.py"))
HEAVY = {
    "deepspeed", "ffcv", "matplotlib", "mlflow", "numba", "pandas", "scipy", "sklearn", "submitit", "timm", "torch",
    "torchvision",
}  # fmt: skip


def loaded_after(code: str) -> set[str]:
    """The heavy packages in sys.modules after `code`."""
    report = "import sys; sys.stderr.write('\\nloaded ' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit\natexit.register(lambda: exec({report!r}))\n{code}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return HEAVY & set(done.stderr.rsplit("\nloaded ", 1)[1].split())


def test_importing_kdscale_loads_nothing_heavy() -> None:
    assert loaded_after("import kdscale") == set()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_loads_nothing_heavy(script: Path) -> None:
    run = f"runpy.run_path({str(script)!r}, run_name='__main__')"
    code = f"import sys, runpy\nsys.argv = [{script.name!r}, '--help']\n{run}"
    assert loaded_after(code) == set()


@pytest.mark.parametrize("kind", ["losses", "modifiers", "strategies", "models", "datasets", "teachers"])
def test_plugins_are_described_without_importing_them(kind: str) -> None:
    assert loaded_after(f"from kdscale import plugins\nassert all(plugins.describe({kind!r}))") == set()


def test_the_scan_finds_a_heavy_import() -> None:
    assert "torch" in loaded_after("import torch")
