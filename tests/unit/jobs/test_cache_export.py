"""Exported records are what a student's teacher answers, whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from kdscale.cache.reader import CacheReader
from kdscale.cache.records import decode
from kdscale.errors import CacheCorrupt, CacheMiss, ConfigError
from kdscale.jobs import cache_records
from kdscale.jobs.cache_export import export
from kdscale.jobs.cache_places import CachePlace
from kdscale.jobs.cache_teacher import data_of
from kdscale.pipeline.artifacts import Root
from tests.small_caches import damage

Of = Callable[[str], CachePlace]
STUDENTS = ("exact", "sparse", "mixed")


def exported(root: Root, name: str, out: Path, **options: Any) -> dict[str, Any]:
    """What is in the file, by column."""
    known: dict[str, Any] = {"format_": out.suffix[1:], "view": None, "rows": None, "force": False}
    assert export(root, name, Console(width=200), out=out, **{**known, **options}) == 0
    assert list(out.parent.glob(f".{out.name}*")) == []
    if out.suffix == ".npz":
        with np.load(out, allow_pickle=False) as found:
            return {key: value for key, value in found.items() if key != "about"}
    from pyarrow import parquet

    table = parquet.read_table(out)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.parametrize("name", STUDENTS)
def test_both_formats_hold_the_same(caches: Root, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_records, "CHUNK_BYTES", 10_000)
    arrays = exported(caches, f"small:{name}", tmp_path / "a.npz")
    table = exported(caches, f"small:{name}", tmp_path / "a.parquet")
    assert arrays.keys() == table.keys()
    for key, column in arrays.items():
        assert (column == table[key]).all()
        assert len(column) == 2 * 108


@pytest.mark.parametrize("name", STUDENTS)
def test_the_numbers_are_what_a_student_is_told(caches: Root, place: Of, tmp_path: Path, name: str) -> None:
    found = exported(caches, f"small:{name}", tmp_path / "a.npz", view=1)
    known = place(name)
    records = torch.from_numpy(CacheReader(known.opened).gather(known.opened.rows, 1))
    assert (found["row"] == known.opened.rows).all()
    assert (found["view"] == 1).all()
    store, _ = data_of(known, caches)
    assert (found["label"] == store.labels("train")[found["row"]]).all()
    labels, partners = (torch.from_numpy(found[key]) for key in ("label", "label_b" if name == "mixed" else "label"))
    answer = decode(records, known.layout, labels=labels, labels_b=partners if name == "mixed" else None)
    if name == "exact":
        assert (found["logits"] == answer.logits.numpy()).all()
        return
    told = answer.logits.log_softmax(1).gather(1, torch.from_numpy(found["index"].astype(np.int64)))
    mine = found["logit"] - found["log_sum"][:, [0]]
    np.testing.assert_allclose(mine, told.numpy(), atol=2e-3)
    kept = found["index"] == found["label"][:, None]
    target = found["target"][:, 0] if name == "mixed" else found["target"]
    np.testing.assert_allclose(found["logit"][kept], np.broadcast_to(target[:, None], kept.shape)[kept], atol=1e-6)
    assert kept.any()


def test_partners_labels_and_features_of_mixed_views(caches: Root, place: Of, tmp_path: Path) -> None:
    found = exported(caches, "small:mixed", tmp_path / "a.npz")
    layout = place("mixed").layout
    assert found["target"].shape == (216, 2)
    assert found["drawn"].shape == (216, 4)
    assert found["pooled"].shape == (216, layout.pooled)
    kept = found["index"] == found["label_b"][:, None]
    np.testing.assert_allclose(found["logit"][kept], np.repeat(found["target"][:, 1], kept.sum(1)), atol=1e-6)


@pytest.mark.parametrize(("rows", "expected"), [("0:10", range(10)), ("100:,3,3:5", [3, 4, *range(100, 120)])])
def test_rows(caches: Root, place: Of, tmp_path: Path, rows: str, expected: Any) -> None:
    held = [row for row in expected if row in place("exact").opened.rows]
    found = exported(caches, "small:exact", tmp_path / "a.npz", view=0, rows=rows)
    assert found["row"].tolist() == held


def test_the_file_says_what_it_holds(caches: Root, place: Of, tmp_path: Path) -> None:
    from pyarrow import parquet

    exported(caches, "small:exact", tmp_path / "a.parquet")
    exported(caches, "small:exact", tmp_path / "a.npz")
    digest = place("exact").opened.manifest.digest
    assert json.loads(parquet.read_schema(tmp_path / "a.parquet").metadata[b"kdscale"])["cache"] == digest
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert json.loads(str(found["about"]))["cache"] == digest


def test_a_file_that_is_there_is_kept_unless_forced(caches: Root, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="is there already: --force replaces it"):
        exported(caches, "small:exact", out)
    assert out.read_text() == "mine"
    assert len(exported(caches, "small:exact", out, force=True)["row"]) == 216


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"view": 2}, "--view 2: the views of .* are 0 to 1"),
        ({"rows": "0:x"}, "row numbers and ranges"),
        ({"rows": "5000"}, "holds none of it: 108 rows"),
    ],
)
def test_what_it_does_not_hold_is_refused(caches: Root, tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        exported(caches, "small:exact", tmp_path / "a.npz", **options)
    assert not (tmp_path / "a.npz").exists()


def test_a_folder_or_a_place_below_a_file_is_refused(caches: Root, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a folder"):
        exported(caches, "small:exact", tmp_path)
    with pytest.raises(ConfigError, match=r"--out .*a.npz: "):
        exported(caches, "small:exact", tmp_path / "file" / "a.npz")


@pytest.mark.parametrize("format_", ["npz", "parquet"])
def test_a_damaged_block_leaves_no_file(caches: Root, place: Of, tmp_path: Path, format_: str) -> None:
    damage(place("exact"), 6)
    with pytest.raises(CacheCorrupt, match="block 6"):
        exported(caches, "small:exact", tmp_path / "out" / f"a.{format_}")
    assert list((tmp_path / "out").iterdir()) == []
    assert len(exported(caches, "small:exact", tmp_path / "out" / f"a.{format_}", view=0)["row"]) == 108


def test_blocks_that_are_absent_are_said_before_anything_is_written(caches: Root, place: Of, tmp_path: Path) -> None:
    with (place("exact").path / "blocks.bin").open("r+b") as file:
        file.truncate(5 * 16)
    with pytest.raises(CacheMiss, match="3 of 8 blocks are not there yet; --view 0 is whole"):
        exported(caches, "small:exact", tmp_path / "a.npz")
    assert len(exported(caches, "small:exact", tmp_path / "a.npz", view=0)["row"]) == 108


@pytest.mark.parametrize("format_", ["npz", "parquet"])
def test_a_full_disk_leaves_no_file(caches: Root, tmp_path: Path, format_: str, monkeypatch: Any) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def columns(*given: Any) -> Any:
        yield from list(cache_records.columns_of(*given))[:1]
        raise full

    monkeypatch.setattr("kdscale.jobs.cache_export.columns_of", columns)
    with pytest.raises(OSError, match="No space left"):
        exported(caches, "small:exact", tmp_path / "out" / f"a.{format_}")
    assert list((tmp_path / "out").iterdir()) == []


def test_without_its_data_there_are_no_labels(caches: Root, tmp_path: Path, capsys: Any) -> None:
    next(stage for stage in caches.stages() if stage.name == "data").take_out("a test")
    found = exported(Root(caches.path), "small:exact", tmp_path / "a.npz")
    assert "label" not in found
    assert "without labels: " in capsys.readouterr().out


def test_without_pyarrow_it_says_what_to_install(caches: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install pyarrow.*--format npz needs nothing"):
        exported(caches, "small:exact", tmp_path / "a.parquet")
