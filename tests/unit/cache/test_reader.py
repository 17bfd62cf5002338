"""Reading: the right bytes for any rows, order and shape, own memory, and clear words where there are none."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.cache.folder import CacheFolder
from kdscale.cache.reader import CacheReader
from kdscale.cache.writer import BlockWriter
from kdscale.errors import CacheMiss
from tests.unit.cache.filling import bytes_of, cache_of, fill, records_of

FORK = multiprocessing.get_context("fork")


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


def test_an_empty_batch(tmp_path: Path) -> None:
    assert CacheReader(cache_of(tmp_path)).gather(np.zeros(0, np.int64), 1).shape == (0, 5)


def test_what_is_not_there_is_named_with_the_mend(tmp_path: Path) -> None:
    folder = fill(cache_of(tmp_path), [0, 1, 2, 3])
    reader = CacheReader(folder)
    mend = r"\. Fill it: run python launch/sweep\.py CONFIG again, or set fill: on_use$"
    with pytest.raises(CacheMiss, match=f"^{folder.path} does not hold block 4 of view 1{mend}"):
        reader.gather(np.array([9, 3, 5], np.int64), 1)
    for view in (2, -1):
        with pytest.raises(CacheMiss, match=f"^{folder.path} does not hold view {view}: its views are 0 to 1{mend}"):
            reader.gather(np.array([0], np.int64), view)
    with pytest.raises(CacheMiss, match="holds no row 10: it was made for 10 rows, 0 to 9;"):
        reader.gather(np.array([0, 10], np.int64), 0)
    shutil.rmtree(folder.path)
    with pytest.raises(CacheMiss, match="holds no cache"):
        reader.gather(np.array([0], np.int64), 2)


def test_a_reader_sees_blocks_and_views_that_come(tmp_path: Path) -> None:
    folder = fill(cache_of(tmp_path, views=1), [0])
    reader, model = CacheReader(folder), {}
    assert reader.gather(np.arange(4, dtype=np.int64), 0).all()
    for views in (2, 3):
        grown = cache_of(tmp_path, views=views)
        fill(grown, grown.missing().tolist())
        model = model_of(grown)
        for view in range(views):
            found = reader.gather(np.arange(10, dtype=np.int64), view)
            assert [record.tobytes() for record in found] == [model[view, row] for row in range(10)]
    assert len(model) == 30


def test_a_block_written_after_its_shard_was_mapped_is_read_once_it_is_in_the_file_of_that_name(tmp_path: Path) -> None:
    """As when a shard is mended by putting another file in its place."""
    folder = fill(cache_of(tmp_path), [0])
    reader = CacheReader(folder)
    reader.gather(np.arange(4, dtype=np.int64), 0)
    folder.shard(0).rename(tmp_path / "aside")
    shutil.copyfile(tmp_path / "aside", folder.shard(0))
    fill(folder, [1])
    found = reader.gather(np.arange(8, dtype=np.int64), 0)
    np.testing.assert_array_equal(found, np.concatenate([records_of(folder, 0), records_of(folder, 1)]))


def test_a_reader_made_before_a_fork_reads_after_it(tmp_path: Path) -> None:
    folder = fill(cache_of(tmp_path))
    reader, answer = CacheReader(folder), FORK.Queue()
    process = FORK.Process(target=lambda: answer.put(reader.gather(np.arange(10, dtype=np.int64), 1)))
    process.start()
    found = answer.get(timeout=30)
    process.join()
    np.testing.assert_array_equal(found, reader.gather(np.arange(10, dtype=np.int64), 1))


def test_verifying_looks_at_what_is_there_and_tells(tmp_path: Path) -> None:
    folder, told = fill(cache_of(tmp_path), [0, 2, 3]), []
    folder.shard(1).write_bytes(bytes(40))
    reader = CacheReader(folder)
    assert reader.verify(told=lambda done, total: told.append((done, total))) == [2, 3]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert reader.verify([0, 1, 3]) == [3]
    assert reader.verify(range(2)) == []


# --------------------------------------------------------------------------- another program


@pytest.fixture
def foreign(root: Path) -> Any:
    """`read_record` of docs/cache-format.md."""
    text = (root / "docs" / "cache-format.md").read_text()
    (code,) = [part.split("```")[0] for part in text.split("```python\n")[1:] if "def read_record" in part]
    assert len([line for line in code.splitlines() if line.strip()]) <= 26
    names: dict[str, Any] = {}
    exec(compile(code, "docs/cache-format.md", "exec"), names)
    return names["read_record"]


def cache_of_records(root: Path, fields: list[dict[str, Any]], record: np.dtype) -> tuple[CacheFolder, Any]:
    """A cache of structured records, its last block absent, and what it holds as (views, rows)."""
    rows = np.arange(3, 60, 4, dtype=np.int64)
    identity = {"teacher": "t", "record": {"fields": fields}}
    shape = {"record_bytes": record.itemsize, "block_rows": 4, "shard_records": 12, "views": 3}
    folder = cache_of(root, rows, identity=identity, **shape)
    writer = BlockWriter(folder)
    for block in range(folder.manifest.blocks - 1):
        assert writer.take(block)
        writer.write(block, records_of(folder, block))
    writer.close()
    blocks = [records_of(folder, block) for block in range(folder.manifest.blocks)]
    return folder, np.concatenate(blocks).view(record).reshape(3, len(rows))


def test_the_documents_reader_reads_a_dense_record(foreign: Any, tmp_path: Path) -> None:
    fields = [
        {"name": "logit", "dtype": "<f2", "shape": [7], "offset": 0},
        {"name": "row_max", "dtype": "<f4", "shape": [], "offset": 14},
    ]
    folder, held = cache_of_records(tmp_path, fields, np.dtype([("logit", "<f2", 7), ("row_max", "<f4")]))
    for view in range(3):
        for position, row in enumerate(folder.rows.tolist()):
            found = foreign(folder.path, view, row)
            if view == 2 and position >= 12:
                assert found is None
            else:
                assert found.tobytes() == held[view, position].tobytes()
                np.testing.assert_array_equal(found["logit"], held[view, position]["logit"])
    os.truncate(folder.path / "blocks.bin", 5)
    assert foreign(folder.path, 0, 3) is None


def test_the_documents_reader_reads_a_top_k_record(foreign: Any, tmp_path: Path) -> None:
    fields = [
        {"name": "index", "dtype": "<u2", "shape": [3], "offset": 0},
        {"name": "logit", "dtype": "<f2", "shape": [3], "offset": 6},
        {"name": "row_max", "dtype": "<f4", "shape": [], "offset": 12},
    ]
    record = np.dtype([("index", "<u2", 3), ("logit", "<f2", 3), ("row_max", "<f4")])
    folder, held = cache_of_records(tmp_path, fields, record)
    assert foreign(folder.path, 1, 31).tobytes() == held[1, 7].tobytes()
    assert foreign(folder.path, 1, 31)["index"].tolist() == held[1, 7]["index"].tolist()
