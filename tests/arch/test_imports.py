"""What starts fast: the package and every command line load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdscale.data.loader import ffcv_problem

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.py"))
HEAVY = {
    "deepspeed", "ffcv", "matplotlib", "mlflow", "numba", "optuna", "pandas", "scipy", "sklearn", "submitit", "timm",
    "torch", "torchvision",
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
    assert (
        loaded_after(
            f"from kdscale import plugins\nassert all(plugins.describe({kind!r}))\n"
            f"assert all(plugins.entry({kind!r}, name).idea for name in plugins.available({kind!r}))"
        )
        == set()
    )


def run_apart(code: str) -> None:
    """Run assertions in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_planning_leaves_out_the_compiler(tmp_path: Path) -> None:
    """torch._dynamo takes longer to import than a plan to make."""
    config = tmp_path / "small.yaml"
    config.write_text(
        "name: small\ndata: {name: synthetic}\n"
        "stages: {student: {student: {model: resnet_cifar, depth: 8}, losses: [{name: ce}]}}\n"
    )
    run_apart(
        "import sys\n"
        "from pathlib import Path\n"
        "from kdscale.config.load import load\n"
        "from kdscale.pipeline.artifacts import Root\n"
        "from kdscale.pipeline.plan import make_plan\n"
        f"plan = make_plan(load({str(config)!r}, []), Root(Path({str(tmp_path)!r})))\n"
        "assert any(stage.cost.flops for stage in plan.stages.values())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )


@pytest.mark.parametrize("module", ["housekeeping", "status", "logs", "overview", "storage", "cache_command"])
def test_what_only_looks_waits_for_no_torch(module: str) -> None:
    """Two seconds of every look, otherwise."""
    assert "torch" not in loaded_after(f"import kdscale.jobs.{module}")


def test_workers_find_everything_imported() -> None:
    """What their parent leaves out, every rank of every stage pays for."""
    run_apart(
        "import sys\n"
        "from kdscale.jobs.warm import _import_everything\n"
        "_import_everything()\n"
        "stages = {'kdscale.train.' + name for name in ('stage', 'convert', 'fill_cache')}\n"
        "assert stages | {'torch._dynamo'} <= sys.modules.keys()\n"
    )


def test_workers_parent_opens_ffcv_through_its_fence() -> None:
    """Imported past the fence, FFCV compiles for seconds."""
    if problem := ffcv_problem():
        pytest.skip(f"FFCV cannot be used: {problem}")
    run_apart(
        "from kdscale.jobs.warm import _import_everything\n"
        "_import_everything()\n"
        "from ffcv.fields import rgb_image\n"
        "assert type(rgb_image.IMAGE_MODES) is dict\n"
    )


def test_the_scan_finds_a_heavy_import() -> None:
    assert "torch" in loaded_after("import torch")
