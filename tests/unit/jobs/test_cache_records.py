"""Records as columns: which rows a text means, and how they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdscale.cache.layout import Layout
from kdscale.cache.records import encode
from kdscale.errors import ConfigError
from kdscale.jobs.cache_records import columns_of, decoded, select, shapes_of
from tests.unit.cache.filling import cache_of, fill

HELD = np.array([2, 3, 5, 8, 13, 21, 34], np.int64)
LAYOUTS = [
    Layout(6, "dense", pooled=2),
    Layout(6, "dense_fp32"),
    Layout(6, "topk", k=2, temperatures=(1.0, 2.0)),
    Layout(70_000, "topk", k=2),
    Layout(6, "topk", k=0, residual="sampled", draws=3, mixing=True),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        ("0:6", [2, 3, 5]),
        (":6", [2, 3, 5]),
        ("13:", [13, 21, 34]),
        (":", HELD.tolist()),
        (" 34, 2:4 ,3", [2, 3, 34]),
    ],
)
def test_rows_by_number_and_by_range(tmp_path: Path, text: str, expected: list[int]) -> None:
    folder = fill(cache_of(tmp_path, HELD))
    chosen = select(folder, 1, text)
    assert (chosen.rows.tolist(), list(chosen.views), chosen.records) == (expected, [1], len(expected))


@pytest.mark.parametrize("text", ["", "x", "1:2:3", "4", "6:8", "35:", "3,4", "-1"])
def test_rows_that_are_not_held_or_no_rows_are_refused(tmp_path: Path, text: str) -> None:
    folder = fill(cache_of(tmp_path, HELD))
    with pytest.raises(ConfigError, match="--rows"):
        select(folder, None, text)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_columns_have_the_shapes_that_are_foretold(layout: Layout) -> None:
    numbers = torch.arange(5)
    logits = torch.randn(5, layout.classes, generator=torch.Generator().manual_seed(1)) + 30
    records = encode(
        logits, layout, labels=numbers, rows=numbers, view=0, labels_b=numbers if layout.mixing else None,
        pooled=torch.ones(5, layout.pooled) if layout.pooled else None,
    ).numpy()  # fmt: skip
    found, foretold = decoded(records, layout), dict(shapes_of(layout, labelled=False))
    assert {name: (c.dtype, c.shape[1:]) for name, c in found.items()} == {
        name: shape for name, shape in foretold.items() if name not in ("row", "view")
    }
    if layout.k:
        np.testing.assert_allclose(found["logit"], logits.topk(layout.k).values.numpy(), atol=0.01)
        sums = torch.stack([(logits / t).logsumexp(1) for t in layout.temperatures], 1)
        np.testing.assert_allclose(found["log_sum"], sums.numpy(), rtol=1e-5)
    if layout.kind != "topk":
        np.testing.assert_allclose(found["logits"], logits.numpy(), atol=0.01)
    else:
        target = logits.gather(1, numbers[:, None]).numpy()
        np.testing.assert_allclose(found["target"].reshape(5, -1)[:, :1], target, atol=0.01)


@pytest.mark.parametrize("at_once", [1, 10**9])
def test_pieces_are_in_the_order_of_view_and_row(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdscale.jobs.cache_records.CHUNK_BYTES", at_once)
    layout = Layout(2, "dense_fp32")
    folder = fill(cache_of(tmp_path, HELD, record_bytes=layout.record_bytes))
    pieces = list(columns_of(folder, layout, select(folder, None, "3:"), None))
    assert len(pieces) == (4 if at_once == 1 else 2)
    rows = np.concatenate([piece["row"] for piece in pieces])
    views = np.concatenate([piece["view"] for piece in pieces])
    assert rows.tolist() == 2 * HELD[1:].tolist()
    assert views.tolist() == [0] * 6 + [1] * 6
