"""`launch/check.py` as it is typed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = Path(__file__).parents[1] / "contract" / "broken.py"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "spoilt").mkdir()
    (tmp_path / "spoilt" / "__init__.py").touch()
    shutil.copy(BROKEN, tmp_path / "spoilt" / "parts.py")
    return tmp_path


def check(root: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "launch" / "check.py"), *words], cwd=folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_options_belong_to_the_name_before_them(root: Path, mine: Path) -> None:
    done = check(root, mine, "spoilt.parts:NoDefault", "margin=0.5", "spoilt.parts:OneMap")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("keeps the contract") == 2


def test_what_fails_says_what_where_and_the_mend(root: Path, mine: Path) -> None:
    done = check(root, mine.parent, "spoilt.parts:Exponential", "--path", str(mine))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(" FAIL "))
    assert "logits of 3e+04: nan from exp" in lines[at]
    assert "parts.py:" in lines[at + 1]
    assert lines[at + 1].endswith("powers = torch.exp(student.logits.float())  # HERE")
    assert lines[at + 2].strip().startswith("-> widen")
    assert lines[-1] == "spoilt.parts:Exponential: 1 promise broken"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["spoilt.nothing"], "error: spoilt.nothing: No module named"),
        (["spoilt.parts:OneMap", "--path", "nowhere"], "error: --path nowhere: no such folder"),
        (["spoilt.parts:Branching", "size=big"], "error: size=big: say a whole number"),
        (["margin=2"], "margin=2: of which class?"),
        ([], "the following arguments are required"),
    ],
)
def test_usage_is_one_line_and_two(
    words: list[str], said: str, root: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    spec = importlib.util.spec_from_file_location("check_command", root / "launch" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    monkeypatch.chdir(mine)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        code = command.main(words)
    except SystemExit as stopped:
        code = stopped.code
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "spoilt"]:
            del sys.modules[name]
    assert code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed
