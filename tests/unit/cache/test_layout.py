from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.cache.layout import Layout
from kdscale.errors import CacheError, CacheStale, KDScaleError, ShapeError
from tests.unit.cache.answers import layout as any_layout


@given(classes=st.integers(1, 100_000), data=st.data())
def test_its_document_says_all(classes: int, data: st.DataObject) -> None:
    layout = any_layout(data, classes)
    document = json.loads(json.dumps(layout.document()))
    again = Layout.of(document)
    assert again == layout
    assert again.document() == document


@given(classes=st.integers(1, 100_000), pooled=st.integers(0, 600), data=st.data())
def test_fields_lie_one_after_the_other(classes: int, pooled: int, data: st.DataObject) -> None:
    layout = replace(any_layout(data, classes), pooled=pooled)
    assert layout.dtype.itemsize == layout.record_bytes == sum(field.bytes for field in layout.fields)
    assert layout.dtype.fields is not None
    assert {f.name: f.offset for f in layout.fields} == {name: at for name, (_, at) in layout.dtype.fields.items()}
    assert [f.offset for f in layout.fields] == sorted({f.offset for f in layout.fields})
    assert ("pooled" in layout.dtype.fields) == (pooled > 0)


@pytest.mark.parametrize(
    ("layout", "length"),
    [
        (Layout(100, "dense"), 204),
        (Layout(10, "dense_fp32"), 40),
        (Layout(1000, "topk", 10, temperatures=(1.0, 4.0)), 54),
        (Layout(1000, "topk", 10, temperatures=(1.0, 4.0), mixing=True), 56),
        (Layout(70_000, "topk", 10, temperatures=(1.0, 4.0)), 74),
        (Layout(1000, "topk", 0, "sampled", draws=12), 34),
        (Layout(1000, "topk", 5, "sampled", draws=12, temperatures=(1.0, 4.0), pooled=64), 34 + 48 + 128),
    ],
)
def test_lengths(layout: Layout, length: int) -> None:
    assert layout.record_bytes == length


@pytest.mark.parametrize(("classes", "kind"), [(2, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (1_000_000, "<u4")])
def test_an_index_has_the_bytes_it_needs(classes: int, kind: str) -> None:
    layout = Layout(classes, "topk", 2, "sampled", draws=3)
    types = {field.name: field.dtype for field in layout.fields}
    assert types["index"] == types["drawn"] == layout.index_type == kind


def test_a_dense_record_answers_every_temperature() -> None:
    assert Layout(10, "dense", temperatures=(1.0, 4.0)) == Layout(10, "dense")
    assert Layout(10, "dense_fp32").temperatures == ()


def test_a_record_is_topk_at_temperature_1_by_default() -> None:
    assert Layout(10, "topk", 3) == Layout(10, "topk", 3, "uniform", temperatures=(1.0,))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"classes": 0, "k": 0}, ShapeError, "0 classes"),
        ({"classes": 2**22 + 1}, ShapeError, "4,194,304"),
        ({"k": 11}, ShapeError, "k: 11 of 10 classes"),
        ({"k": -1}, ShapeError, "k: -1"),
        ({"k": 0}, CacheError, "keeps no class"),
        ({"residual": "sampled"}, CacheError, "give draws"),
        ({"draws": 4}, CacheError, "belongs to residual: sampled"),
        ({"draws": -4}, ShapeError, "negative"),
        ({"pooled": -4}, ShapeError, "negative"),
        ({"temperatures": ()}, CacheError, "1.0 among them"),
        ({"temperatures": (4.0,)}, CacheError, "1.0 among them"),
        ({"temperatures": (4.0, 1.0)}, CacheError, "ascending"),
        ({"temperatures": (1.0, 1.0)}, CacheError, "without repeats"),
        ({"temperatures": (0.0, 1.0)}, CacheError, "positive"),
        ({"temperatures": (1.0, float("inf"))}, CacheError, "inf"),
        ({"temperatures": (1.0, float("nan"))}, CacheError, "nan"),
        ({"kind": "dense"}, CacheError, "every logit"),
        ({"kind": "dense", "k": 0, "residual": "ghost"}, CacheError, "every logit"),
    ],
)
def test_refuses(options: dict[str, Any], error: type[KDScaleError], words: str) -> None:
    with pytest.raises(error, match=words):
        Layout(**{"classes": 10, "kind": "topk", "k": 3} | options)


def test_fields_that_lie_elsewhere_are_another_versions() -> None:
    document = Layout(10, "topk", 3).document()
    document["fields"][1]["offset"] += 2
    with pytest.raises(CacheStale, match="another version"):
        Layout.of(document)


@pytest.mark.parametrize(("name", "value"), [("kind", "top-k"), ("residual", "smear")])
def test_there_is_no_other_kind_nor_residual(name: str, value: str) -> None:
    layout = Layout(10, "topk", 3)
    object.__setattr__(layout, name, value)  # the suite's type checks would refuse it first
    with pytest.raises(CacheError, match=rf"no such {name}.*: {value} "):
        layout.__post_init__()


@pytest.mark.parametrize("change", [{"row_order": "C"}, {"kind": None}, {"temperatures": None}])
def test_another_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match="no record layout"):
        Layout.of(Layout(10, "topk", 3).document() | change)
    with pytest.raises(CacheError, match="no record layout"):
        Layout.of({"classes": 10})


def test_is_read_without_torch(root: Path) -> None:
    code = "import sys, kdscale.cache.layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
