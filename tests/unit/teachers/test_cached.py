"""A teacher that answers from records: whoever brings them, whatever has become of them on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch
from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import decode, encode
from kdscale.cache.writer import BlockWriter
from kdscale.errors import CacheCorrupt, CacheError, CacheMiss
from kdscale.teachers.cached import CachedTeacher
from tests.unit.cache.filling import cache_of

CPU = torch.device("cpu")
ROWS, VIEWS, CLASSES, BLOCK = 10, 2, 5, 4
RNG = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(VIEWS, ROWS, CLASSES, generator=RNG)
LABELS, PARTNERS = torch.randint(0, CLASSES, (2, ROWS), generator=RNG)
LAM = torch.rand(ROWS, generator=RNG)
EXACT = Layout(CLASSES, "dense_fp32")
MIXED = Layout(CLASSES, "topk", k=2, residual="to_target", temperatures=(1.0, 4.0), mixing=True)

Mend = Callable[[Batch, CacheError], None]


def batch(rows: list[int] | range, view: int = 0, **changes: object) -> Batch:
    """Of these rows, unmixed."""
    at = torch.tensor(list(rows), dtype=torch.int64)
    found = Batch(torch.zeros(len(at), 1, 2, 2, dtype=torch.uint8), LABELS[at], at, view)
    return replace(found, **changes)


def records(layout: Layout, rows: list[int] | range, view: int) -> Tensor:
    at = torch.tensor(list(rows), dtype=torch.int64)
    partners = {"labels_b": PARTNERS[at]} if layout.mixing else {}
    return encode(LOGITS[view, at], layout, labels=LABELS[at], rows=at, view=view, **partners)


def write(folder: CacheFolder, layout: Layout, block: int) -> None:
    writer = BlockWriter(folder)
    try:
        assert writer.take(block)
        rows = folder.rows_of(block).tolist()
        writer.write(block, records(layout, rows, block // folder.manifest.blocks_per_view).numpy())
    finally:
        writer.close()


def reader_of(root: Path, layout: Layout = EXACT, *, filled: bool = True) -> CacheReader:
    folder = cache_of(root, record_bytes=layout.record_bytes, block_rows=BLOCK, shard_records=2 * BLOCK, views=VIEWS)
    for block in range(folder.manifest.blocks if filled else 0):
        write(folder, layout, block)
    return CacheReader(folder)


def never(asked: Batch, known: CacheError) -> None:
    raise AssertionError(f"nothing is to be mended: {known}")


def teacher(reader: CacheReader, layout: Layout = EXACT, mend: Mend = never) -> CachedTeacher:
    return CachedTeacher("big", reader, layout, CPU, mend)


# --------------------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    return reader_of(tmp_path_factory.mktemp("whole"))


ORDERS = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=12)


@given(rows=ORDERS, view=st.integers(0, VIEWS - 1))
def test_answers_what_was_recorded_of_each_row_in_this_view(whole: CacheReader, rows: list[int], view: int) -> None:
    answer = teacher(whole)(batch(rows, view))
    assert torch.equal(answer.logits, LOGITS[view, rows])
    assert not answer.logits.requires_grad


@given(rows=ORDERS, view=st.integers(0, VIEWS - 1))
def test_records_that_the_batch_carries_are_taken_instead(whole: CacheReader, rows: list[int], view: int) -> None:
    carried = records(EXACT, [ROWS - 1 - row for row in rows], view)  # others than the reader would find
    answer = teacher(whole)(batch(rows, view, records={"big": carried}))
    assert torch.equal(answer.logits, LOGITS[view, [ROWS - 1 - row for row in rows]])


def test_of_carried_records_only_its_own_are_taken(whole: CacheReader) -> None:
    answer = teacher(whole)(batch([1, 2], records={"small": records(EXACT, [3, 4], 0)}))
    assert torch.equal(answer.logits, LOGITS[0, [1, 2]])


def test_carried_records_need_no_cache(tmp_path: Path) -> None:
    answer = teacher(reader_of(tmp_path, filled=False))(batch([7, 0], records={"big": records(EXACT, [7, 0], 0)}))
    assert torch.equal(answer.logits, LOGITS[0, [7, 0]])


def test_what_it_reads_ahead_is_what_it_answers_from(whole: CacheReader) -> None:
    taught, asked = teacher(whole), batch([9, 3, 3], 1)
    ahead = taught.records(asked.rows.numpy(), asked.view)
    assert torch.equal(ahead, records(EXACT, [9, 3, 3], 1))
    carrying = replace(asked, records={"big": ahead})
    assert torch.equal(taught(carrying).logits, taught(asked).logits)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_micro_batches_keep_the_records_of_their_rows(whole: CacheReader, parts: int) -> None:
    rows = [5, 9, 0, 7, 2, 2, 8, 1]
    carrying = batch(rows, 1, records={"big": records(EXACT, rows, 1)})
    micro = carrying.split(parts)
    assert [len(part.records["big"]) for part in micro] == [8 // parts] * parts
    answers = torch.cat([teacher(whole)(part).logits for part in micro])
    assert torch.equal(answers, LOGITS[1, rows])


# --------------------------------------------------------------------------- mixtures


def mixed(rows: list[int], lam: Tensor = LAM) -> Batch:
    return batch(rows, labels_b=PARTNERS[rows], lam=lam[rows])


def test_a_mixtures_residual_goes_to_both_labels_by_their_shares(tmp_path: Path) -> None:
    taught, rows = teacher(reader_of(tmp_path, MIXED), MIXED), list(range(ROWS))
    student = torch.zeros(ROWS, CLASSES)
    found = taught(mixed(rows)).at(4.0, student).logits
    partners = {"labels_b": PARTNERS, "lam": LAM}
    expected = decode(records(MIXED, rows, 0), MIXED, labels=LABELS, **partners).at(4.0, student).logits
    assert torch.equal(found, expected)
    assert not torch.equal(taught(mixed(rows, 1 - LAM)).at(4.0, student).logits, expected)


def test_mixtures_that_are_split_keep_their_labels(tmp_path: Path) -> None:
    taught, rows = teacher(reader_of(tmp_path, MIXED), MIXED), [8, 1, 6, 3]
    whole_ = taught(mixed(rows)).logits
    assert torch.equal(torch.cat([taught(part).logits for part in mixed(rows).split(2)]), whole_)


# --------------------------------------------------------------------------- what is not there, or damaged


def damage(reader: CacheReader, block: int) -> None:
    """Flip every bit of one byte of a block, behind the reader's back."""
    path, offset = reader.folder.place(block)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


class Mender:
    """Makes a batch's blocks right again, and notes what it was told."""

    def __init__(self, reader: CacheReader) -> None:
        self.reader, self.told = reader, list[tuple[Batch, CacheError]]()

    def __call__(self, asked: Batch, known: CacheError) -> None:
        self.told.append((asked, known))
        folder = self.reader.folder
        places = folder.positions(asked.rows.numpy()) // folder.manifest.block_rows
        for block in np.unique(places + asked.view * folder.manifest.blocks_per_view).tolist():
            if folder.has(block):
                path, offset = folder.place(block)
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(records(EXACT, folder.rows_of(block).tolist(), asked.view).numpy().tobytes())
            else:
                write(folder, EXACT, block)
            self.reader.forget(block)


def broken(reader: CacheReader, kind: type[CacheError]) -> CacheReader:
    if kind is CacheCorrupt:
        damage(reader, 1)
    return reader


KINDS = [(CacheMiss, False), (CacheCorrupt, True)]


@pytest.mark.parametrize(("kind", "filled"), KINDS)
def test_what_cannot_be_read_is_mended_and_answered_right_away(
    tmp_path: Path, kind: type[CacheError], filled: bool
) -> None:
    reader = broken(reader_of(tmp_path, filled=filled), kind)
    mender, asked = Mender(reader), batch([6, 1, 5])
    taught = teacher(reader, mend=mender)
    assert torch.equal(taught(asked).logits, LOGITS[0, [6, 1, 5]])
    [(given_, known)] = mender.told
    assert given_ is asked
    assert type(known) is kind
    assert torch.equal(taught(asked).logits, LOGITS[0, [6, 1, 5]])
    assert len(mender.told) == 1, "mended once, it stays mended"


@pytest.mark.parametrize(("kind", "filled"), KINDS)
def test_reading_ahead_mends_nothing(tmp_path: Path, kind: type[CacheError], filled: bool) -> None:
    reader = broken(reader_of(tmp_path, filled=filled), kind)
    with pytest.raises(kind):
        teacher(reader).records(np.array([6, 1, 5]), 0)


@pytest.mark.parametrize(("kind", "filled"), KINDS)
def test_where_nothing_may_be_mended_the_reason_goes_through(
    tmp_path: Path, kind: type[CacheError], filled: bool
) -> None:
    def read_only(asked: Batch, known: CacheError) -> None:
        raise known

    reader = broken(reader_of(tmp_path, filled=filled), kind)
    with pytest.raises(kind, match=str(tmp_path)):
        teacher(reader, mend=read_only)(batch([6, 1, 5]))


def test_a_mend_that_does_not_help_is_not_tried_again(tmp_path: Path) -> None:
    calls = []
    taught = teacher(reader_of(tmp_path, filled=False), mend=lambda asked, known: calls.append(known))
    with pytest.raises(CacheMiss):
        taught(batch([0]))
    assert len(calls) == 1


# --------------------------------------------------------------------------- what it is


def test_says_what_it_provides(whole: CacheReader) -> None:
    assert teacher(whole).provides == {"logits"}
    assert teacher(whole, replace(EXACT, pooled=3)).provides == {"logits", "features"}


def test_the_tap_pooled_is_its_feature(whole: CacheReader) -> None:
    layout = replace(EXACT, pooled=3)
    pooled = torch.tensor([[0.5, -1.0, 2.0]])
    carried = encode(LOGITS[0, :1], layout, labels=LABELS[:1], rows=torch.zeros(1).long(), view=0, pooled=pooled)
    [feature] = teacher(whole, layout)(batch([0], records={"big": carried})).features
    assert torch.equal(feature, pooled)


def test_its_fingerprint_is_the_caches_identity(whole: CacheReader, tmp_path: Path) -> None:
    before = teacher(whole).fingerprint()
    teacher(whole)(batch(range(ROWS)))
    assert teacher(whole).fingerprint() == before
    assert teacher(reader_of(tmp_path, MIXED)).fingerprint() == whole.folder.manifest.digest
