"""Reading: the right bytes for any rows, order and shape, own memory, and clear words where there are none."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from tests.unit.cache.filling import bytes_of, cache_of, fill, records_of


def model_of(folder: CacheFolder) -> dict[tuple[int, int], bytes]:
    """The cache as a dictionary of (view, row)."""
    return {
        (view, int(row)): record.tobytes()
        for view in range(folder.manifest.views)
        for block in folder.blocks_of_view(view)
        for row, record in zip(folder.rows_of(block), records_of(folder, block), strict=True)
    }


ROWS = st.one_of(
    st.integers(1, 40).map(range),
    st.sets(st.integers(0, 60), min_size=1, max_size=40),
    st.sets(st.integers(0, 2**40), min_size=1, max_size=20),
)


@given(
    rows=ROWS,
    block_rows=st.integers(1, 9),
    shard_blocks=st.integers(1, 5),
    views=st.integers(1, 4),
    record_bytes=st.integers(1, 9),
    data=st.data(),
)
def test_gathering_is_looking_up(
    rows: set[int], block_rows: int, shard_blocks: int, views: int, record_bytes: int, data: st.DataObject
) -> None:
    held = np.array(sorted(rows), np.int64)
    shape = {"block_rows": block_rows, "shard_records": shard_blocks * block_rows}
    with tempfile.TemporaryDirectory() as place:
        folder = fill(cache_of(Path(place), held, **shape, views=views, record_bytes=record_bytes))
        model, reader = model_of(folder), CacheReader(folder)
        for _ in range(3):
            batch = data.draw(st.lists(st.sampled_from(sorted(rows)), max_size=20))
            view = data.draw(st.integers(0, views - 1))
            found = reader.gather(np.array(batch, np.int64), view)
            assert found.shape == (len(batch), record_bytes)
            assert [record.tobytes() for record in found] == [model[view, row] for row in batch]
        assert sum(path.stat().st_size for path in folder.path.glob("records-*")) == (
            folder.manifest.blocks * block_rows * record_bytes
        )


def test_what_was_gathered_is_the_callers_own(tmp_path: Path) -> None:
    reader = CacheReader(fill(cache_of(tmp_path)))
    rows = np.arange(10, dtype=np.int64)
    before = bytes_of(reader.folder)
    found = reader.gather(rows, 0)
    found[:] = 0
    assert reader.gather(rows, 0).all()
    assert bytes_of(reader.folder) == before
