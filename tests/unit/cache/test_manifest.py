"""Manifests: the same document for the same cache, refused when they are none, and differences in words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.cache.manifest import Manifest, difference, hash_of_rows
from kdscale.errors import CacheCorrupt, CacheError, CacheStale
from tests.unit.cache.filling import manifest_of

ROWS = np.arange(10, dtype=np.int64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
IDENTITIES = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


@given(IDENTITIES)
def test_a_document_is_taken_up_again(identity: dict[str, Any]) -> None:
    manifest = manifest_of(ROWS, identity=identity)
    assert Manifest.of(json.loads(json.dumps(manifest.document()))) == manifest


@given(IDENTITIES, st.randoms())
def test_the_digest_knows_no_order_of_keys(identity: dict[str, Any], draw: Any) -> None:
    keys = list(identity)
    draw.shuffle(keys)
    assert (
        manifest_of(ROWS, identity={k: identity[k] for k in keys}).digest == manifest_of(ROWS, identity=identity).digest
    )


def test_the_digest_is_that_of_the_identity_alone() -> None:
    digest = manifest_of(ROWS).digest
    assert digest == "26dddc91c4e0fe4d68bd0b9b2445b066c873ce0835778bd266ff55f63ff96957"
    assert manifest_of(ROWS, views=7, shard_records=80).digest == digest
    assert manifest_of(ROWS, identity={"teacher": 1}).digest != manifest_of(ROWS, identity={"teacher": 1.0}).digest


@given(rows=st.integers(1, 100), block_rows=st.integers(1, 20), shard_blocks=st.integers(1, 7), views=st.integers(1, 5))
def test_the_arithmetic_counts_every_block_once(rows: int, block_rows: int, shard_blocks: int, views: int) -> None:
    shape = {"block_rows": block_rows, "shard_records": shard_blocks * block_rows, "views": views}
    manifest = manifest_of(np.arange(rows, dtype=np.int64), **shape)
    assert (manifest.blocks_per_view - 1) * block_rows < rows <= manifest.blocks_per_view * block_rows
    assert manifest.blocks == views * manifest.blocks_per_view
    assert (manifest.shards - 1) * shard_blocks < manifest.blocks <= manifest.shards * shard_blocks
    assert manifest.block_bytes == block_rows * manifest.record_bytes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"views": 0}, "views of a cache must be above 0, not 0"),
        ({"shard_records": 10}, "shard_records 10 is no multiple of block_rows 4"),
        ({"identity": {"a": {1, 2}}}, "the identity of a cache must be plain JSON"),
        ({"identity": {"a": float("nan")}}, "the identity of a cache must be plain JSON"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CacheError, match=says):
        manifest_of(ROWS, **changes)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"schema": None}, r"is no manifest of a cache \(schema\)"),
        ({"schema": 0}, r"is no manifest of a cache \(schema\)"),
        ({"schema": True}, r"is no manifest of a cache \(schema\)"),
        ({"identity": 3, "rows": True, "views": 2.0}, r"is no manifest of a cache \(identity, rows, views\)"),
        ({"rows_hash": 3}, r"is no manifest of a cache \(rows_hash\)"),
        ({"rows": -1}, ": rows of a cache must be above 0, not -1"),
        ({"identity": {"teacher": "another"}}, ": its digest is not that of its identity"),
        ({"digest": "0"}, ": its digest is not that of its identity"),
    ],
)
def test_what_is_no_manifest_is_corrupt(damage: dict[str, Any], says: str) -> None:
    with pytest.raises(CacheCorrupt, match=f"^runs/x ?{says}.*: remove the folder and fill it again"):
        Manifest.of({**manifest_of(ROWS).document(), **damage}, "runs/x")


@pytest.mark.parametrize("missing", ["rows", "identity", "digest", "schema"])
def test_a_manifest_that_lacks_something_is_corrupt(missing: str) -> None:
    document = manifest_of(ROWS).document()
    del document[missing]
    with pytest.raises(CacheCorrupt):
        Manifest.of(document)


@pytest.mark.parametrize("document", [None, [], 3, {}, "text"])
def test_other_json_is_corrupt(document: Any) -> None:
    with pytest.raises(CacheCorrupt, match="the manifest is no manifest of a cache"):
        Manifest.of(document)


def test_a_later_schema_is_stale() -> None:
    with pytest.raises(
        CacheStale, match="made by a later kdscale, schema 2; this one reads 1: update, or fill another"
    ):
        Manifest.of({"schema": 2, "all": "else is new"})


def test_the_hash_of_rows_sees_each_row() -> None:
    hashes = {hash_of_rows(ROWS), hash_of_rows(ROWS + 1), hash_of_rows(ROWS[:-1]), hash_of_rows(ROWS[::-1])}
    assert len(hashes) == 4


# --------------------------------------------------------------------------- differences


@pytest.mark.parametrize(
    ("expected", "found", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, ['a.b: expected "x", found "y"']),
        ({"a": 1}, {"a": 1.0}, ["a: expected 1, found 1.0"]),
        ({"a": 1}, {"a": True}, ["a: expected 1, found true"]),
        ({"a": None}, {}, ["a: expected null, found nothing"]),
        ({}, {"a": {"b": []}}, ["a.b: expected nothing, found []"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1: expected 2, found 3"]),
        ({"": 0, "a.b": 1}, {}, ['"": expected 0, found nothing', '"a.b": expected 1, found nothing']),
        ({"a": [1]}, {"a": {"0": 1}}, ['a."0": expected nothing, found 1', "a.0: expected 1, found nothing"]),
        ({"a": "3f" * 32}, {"a": "9a" * 32}, ["a: expected 3f3f3f3f3f3f.., found 9a9a9a9a9a9a.."]),
        (
            {"a": "3f" * 15 + "0"},
            {"a": "3f" * 15 + "1"},
            [f'a: expected "{"3f" * 15}0", found "{"3f" * 15}1"'],
        ),
    ],
)
def test_differences_in_words(expected: dict[str, Any], found: dict[str, Any], lines: list[str]) -> None:
    assert difference(expected, found) == lines


@given(IDENTITIES, IDENTITIES)
def test_there_is_a_difference_where_digests_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = manifest_of(ROWS, identity=one).digest == manifest_of(ROWS, identity=other).digest
    assert bool(difference(one, other)) != same
    assert difference(one, one) == []
