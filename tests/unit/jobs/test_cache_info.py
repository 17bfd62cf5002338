"""`launch/cache.py info`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from kdscale.jobs.cache_info import info
from kdscale.jobs.cache_places import CachePlace
from kdscale.pipeline.artifacts import Root

Of = Callable[[str], CachePlace]


def told(capsys: Any, root: Root, name: str | None = None, *, as_json: bool = False, code: int = 0) -> str:
    capsys.readouterr()
    assert info(root, name, Console(width=200), as_json=as_json) == code
    return str(capsys.readouterr().out)


def test_the_list_has_a_line_a_cache(caches: Root, capsys: Any) -> None:
    lines = told(capsys, caches).splitlines()
    assert len(lines) == 4
    assert sum("8/8" in line and "done 1" in line for line in lines) == 3
    assert sum("top 3 + sampled, pooled" in line for line in lines) == 1


def test_one_says_who_reads_it_and_from_what_it_was_made(caches: Root, capsys: Any) -> None:
    text = told(capsys, caches, "small:exact")
    for part in ("small:exact   done", "8 of 8 are there", "dense fp32, 40 B, any temperature", "2 views of 108 rows"):
        assert part in text
    assert "temperatures 1, 4" in told(capsys, caches, "small:mixed")


def test_as_json(caches: Root, place: Of, capsys: Any) -> None:
    document = json.loads(told(capsys, caches, "small:mixed", as_json=True))
    assert document["schema"] == 1
    (one,) = document["caches"]
    assert one["digest"].startswith(place("mixed").path.name)
    assert (one["rows"], one["views"], one["blocks"], one["blocks_in_all"]) == (108, 2, 8, 8)
    assert one["teacher"]["now"] == "same"
    assert [reader["names"] for reader in one["readers"]] == [["small:mixed"]]


def test_holes_take_no_space(caches: Root, place: Of, capsys: Any) -> None:
    full = json.loads(told(capsys, caches, "small:exact", as_json=True))["caches"][0]["bytes"]
    shard = place("exact").opened.shard(0)
    with shard.open("r+b") as file:
        file.truncate(1 << 30)
    assert json.loads(told(capsys, caches, "small:exact", as_json=True))["caches"][0]["bytes"] < full + (1 << 20)


@pytest.mark.parametrize(("weights", "says"), [("another", "retrained"), (None, "gone")])
def test_a_teacher_that_is_another_by_now_is_said(
    caches: Root, place: Of, capsys: Any, weights: str | None, says: str
) -> None:
    teacher = caches.stage(place("exact").teacher["stage"])
    assert teacher is not None
    if weights is None:
        teacher.take_out("a test")
    else:
        teacher.write_state(weights={"last": weights})
    assert f"its teacher is {says}" in told(capsys, Root(caches.path))


def test_one_that_cannot_be_opened_is_listed_and_is_exit_1(caches: Root, place: Of, capsys: Any) -> None:
    (place("exact").path / "manifest.json").write_text("{")
    assert "cannot be opened" in told(capsys, caches, code=1)


def test_no_cache_at_all(tmp_path: Any, capsys: Any) -> None:
    assert "holds no teacher cache" in told(capsys, Root(tmp_path / "none"))
