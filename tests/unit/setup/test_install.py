"""install.sh where it may not install system packages, and where everything is there already."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = [
    "bash",
    "cat",
    "cksum",
    "cut",
    "dirname",
    "env",
    "grep",
    "head",
    "mkdir",
    "sed",
    "sort",
    "touch",
    "tr",
    "uname",
]
FILES = ["install.sh", "pyproject.toml", "constraints.txt"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="system packages are looked for on Linux only")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout beside a PATH with neither compiler, pkg-config, apt nor sudo."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def install(bare: Path, *extras: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(bare / "bin"), "PYTHON": sys.executable, "HOME": str(bare), **variables}
    return subprocess.run(
        ["bash", str(bare / "install.sh"), *extras],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_what_ffcv_needs_is_named_for_every_packager_and_required_means_an_error(bare: Path) -> None:
    done = install(bare, REQUIRE="ffcv")
    assert done.returncode == 1
    assert "sudo apt-get install g++ libopencv-dev libturbojpeg0-dev pkg-config" in done.stdout
    assert "sudo dnf install gcc-c++ opencv-devel pkgconf-pkg-config turbojpeg-devel" in done.stdout
    assert "conda install -c conda-forge cxx-compiler libjpeg-turbo opencv pkg-config" in done.stdout
    assert "REQUIRE=ffcv" in done.stderr
    assert not (bare / ".venv").exists()


def test_an_old_interpreter_is_named(bare: Path) -> None:
    old = bare / "bin" / "python-old"
    old.write_text('#!/usr/bin/env bash\n[[ $1 == -V ]] && echo "Python 3.9.1" && exit\nexit 1\n')
    old.chmod(0o755)
    done = install(bare, PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 3.9.1, kdscale needs >= 3.10" in done.stderr


def test_a_missing_interpreter_is_named(bare: Path) -> None:
    done = install(bare, PYTHON="python-nowhere")
    assert done.returncode == 1
    assert "there is no python-nowhere" in done.stderr


def test_a_second_call_installs_nothing(bare: Path) -> None:
    stamps = bare / ".venv" / ".kdscale" / _digest(bare)
    stamps.mkdir(parents=True)
    (stamps / "main").touch()
    done = install(bare, PYTHON="python-nowhere")  # would fail if it went on to install
    assert done.returncode == 0, done.stderr
    assert "torch loader" in done.stdout
    assert install(bare, PYTHON="python-nowhere", REQUIRE="ffcv").returncode == 1
    assert install(bare, "dev", PYTHON="python-nowhere").returncode == 1


def _digest(bare: Path) -> str:
    content = b"".join((bare / name).read_bytes() for name in ["pyproject.toml", "constraints.txt", "install.sh"])
    done = subprocess.run(["cksum"], input=content, capture_output=True, check=True)
    return done.stdout.decode().strip().replace(" ", "-")
