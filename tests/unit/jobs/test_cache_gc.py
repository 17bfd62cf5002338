"""`launch/cache.py gc` and what `runs.py` says of caches."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from kdscale.errors import ConfigError
from kdscale.jobs import housekeeping
from kdscale.jobs.cache_gc import byte_count, gc
from kdscale.jobs.storage import measure
from kdscale.jobs.wording import size
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.stage_names import visible_folders


def freed(root: Root, capsys: Any, **options: Any) -> str:
    known = {"older": None, "larger": None, "keep": None, "dry_run": False, "yes": True}
    capsys.readouterr()
    assert gc(root, Console(width=200), **{**known, **options}) == 0
    return str(capsys.readouterr().out)


def test_dry_run_deletes_nothing(caches: Root, capsys: Any) -> None:
    before = sorted(path.name for path in caches.caches.iterdir())
    assert "in all" in freed(caches, capsys, keep="0", dry_run=True)
    assert sorted(path.name for path in caches.caches.iterdir()) == before
    assert "freed" in freed(caches, capsys, keep="0")
    assert "nothing to free" in freed(caches, capsys, keep="0")


def test_it_says_what_stays_and_why(caches: Root, capsys: Any) -> None:
    student = next(stage for stage in caches.stages() if stage.name == "exact")
    student.write_state(state="waiting")
    text = freed(caches, capsys, keep="0", dry_run=True)
    assert f"stays: {student.path.name} is waiting" in text


def test_without_a_yes_and_nobody_to_ask_it_is_refused(
    caches: Root, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match="this deletes 3 caches: say --yes"):
        freed(caches, capsys, keep="0", yes=False)


@pytest.mark.parametrize(
    ("text", "expected"), [("500MB", 500e6), ("2TB", 2e12), ("1.5 GB", 1.5e9), ("7kB", 7e3), ("12", 12), ("3G", 3e9)]
)
def test_sizes(text: str, expected: float) -> None:
    assert byte_count(text, "--keep-bytes") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 parsec"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--keep-bytes .*for example 500GB"):
        byte_count(text, "--keep-bytes")


@pytest.mark.parametrize(("text", "goes"), [("0.00000001", True), ("1d", False), ("30", False)])
def test_a_bare_age_is_days(caches: Root, capsys: Any, text: str, goes: bool) -> None:
    assert ("nothing to free" not in freed(caches, capsys, older=text, dry_run=True)) is goes


def test_what_is_no_age_is_refused(caches: Root, capsys: Any) -> None:
    with pytest.raises(ConfigError, match="--older-than soon: a number with m, h, d or w"):
        freed(caches, capsys, older="soon")


def test_du_counts_caches_and_says_what_gc_frees(caches: Root, capsys: Any) -> None:
    housekeeping.du(caches, Console(width=200), as_json=False)
    assert "3, cache.py gc frees old ones" in capsys.readouterr().out
    teacher = next(stage for stage in caches.stages() if stage.name == "teacher")
    teacher.write_state(weights={"last": "another"})
    housekeeping.du(caches, Console(width=200), as_json=False)
    freed = size(sum(measure(path)[0] for path in visible_folders(caches.caches)))
    assert f"3, cache.py gc frees {freed}" in capsys.readouterr().out


def test_runs_gc_leaves_caches_and_says_so(caches: Root, capsys: Any) -> None:
    options: dict[str, Any] = {"older": None, "keep_students": False, "dry_run": False, "yes": True}
    assert housekeeping.gc(caches, Console(width=200), **options) == 0
    assert "teacher caches are left as they are: 3, cache.py gc frees" in capsys.readouterr().out
    assert len([path for path in caches.caches.iterdir() if not path.name.startswith(".")]) == 3
