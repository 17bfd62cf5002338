"""launch/cache.py as a user calls it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdscale.cache.reader import CacheReader
from tests.small_caches import CONFIG
from tests.unit.cache.filling import cache_of, fill


@pytest.fixture
def cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's main."""
    monkeypatch.setenv("COLUMNS", "200")
    spec = importlib.util.spec_from_file_location("launch_cache", root / "launch" / "cache.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return ["--runs", str(tmp_path / "runs")]


@pytest.mark.parametrize("verb", [[], ["plan"], ["export"]])
def test_help_imports_nothing_heavy(root: Path, verb: list[str]) -> None:
    code = (
        f"import sys, runpy; sys.argv = {['cache.py', *verb, '--help']!r}\n"
        "try: runpy.run_path('launch/cache.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'numba', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["info", "3f21ab"], "is called '3f21ab'; it holds no sweeps (another --runs?); there is no cache"),
        (["verify", "nowhere:student"], "nothing under"),
        (["export", "3f", "--format", "npz", "--out", "x.npz"], "there is no cache"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["gc", "--keep-bytes", "much"], "--keep-bytes much: a number with"),
        (["gc", "--older-than", "soon"], "--older-than soon: a number with"),
    ],
)
def test_usage_errors_are_exit_2_in_one_line(
    cache: Any, runs: list[str], capsys: Any, arguments: list[str], says: str
) -> None:
    assert cache([*arguments, *runs]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_unknown_format_or_a_bad_count_is_argparses(cache: Any) -> None:
    for arguments in (["export", "3f", "--format", "csv", "--out", "x"], ["verify", "--recompute", "0"], ["burn"]):
        with pytest.raises(SystemExit) as end:
            cache(arguments)
        assert end.value.code == 2


def test_plan_says_what_pays_and_writes_nothing(cache: Any, runs: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    assert cache(["plan", str(tmp_path / "small.yaml"), "train.epochs=6", *runs]) == 0
    text = capsys.readouterr().out
    assert text.count("1 student x 6 epochs = 6 > 2 views: pays, 3 x fewer teacher images") == 3
    assert not (tmp_path / "runs").exists()
    assert cache(["plan", str(tmp_path / "small.yaml"), "--json", *runs]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_verify_is_exit_1_where_a_block_is_damaged(cache: Any, runs: list[str], tmp_path: Path, capsys: Any) -> None:
    folder = fill(cache_of(tmp_path / "runs" / "caches"))
    assert cache(["verify", *runs]) == 0
    with folder.shard(0).open("r+b") as file:
        file.write(b"\0\0\0")
    assert cache(["verify", *runs]) == 1
    assert "1 DAMAGED" in capsys.readouterr().out
    assert cache(["verify", folder.path.name, "--repair", *runs]) == 1
    assert "does not say whose answers it holds" in capsys.readouterr().out


def test_ctrl_c_is_exit_130_in_one_line(
    cache: Any, runs: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    folder = fill(cache_of(tmp_path / "runs" / "caches"))
    monkeypatch.setattr(CacheReader, "verify", stopped)
    assert cache(["verify", *runs]) == 130
    assert capsys.readouterr().err == "stopped; what was done stays done\n"
    monkeypatch.undo()
    assert CacheReader(folder).verify() == []


def test_a_full_disk_is_exit_1_with_what_would_help(
    cache: Any, runs: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device", str(tmp_path / "a.npz"))

    monkeypatch.setattr("kdscale.jobs.cache_export.export", full)
    assert cache(["export", "3f", "--format", "npz", "--out", str(tmp_path / "a.npz"), *runs]) == 1
    assert "No space left" in (error := capsys.readouterr().err)
    assert "launch/runs.py gc" in error


def test_gc_frees_what_says_nothing_of_its_teacher(cache: Any, runs: list[str], tmp_path: Path, capsys: Any) -> None:
    folder = fill(cache_of(tmp_path / "runs" / "caches", np.arange(40, dtype=np.int64)))
    assert cache(["gc", "--dry-run", *runs]) == 0
    assert "does not say whose answers it holds" in capsys.readouterr().out
    assert cache(["gc", "--yes", *runs]) == 0
    assert not folder.path.exists()
    assert cache(["gc", *runs]) == 0
    assert "nothing to free" in capsys.readouterr().out
