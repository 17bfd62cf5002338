"""What a cache says about itself: whose answers it holds, to what, and how they lie on disk.

The identity decides the bytes of every record, and its digest names the folder. The rest is arithmetic. A manifest
holds no time, host or user: two fills of the same cache give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from kdscale.errors import CacheCorrupt, CacheError, CacheStale

__all__ = ["SCHEMA", "Manifest", "difference", "digest_of", "hash_of_rows"]

SCHEMA = 1
DIGEST_CHARACTERS = 12
"""Of the digest, in a folder's name."""
SHORT = 12
PLAIN = re.compile(r"[^\W\d][\w-]*")
"""Keys that stand in a dotted key as they are; others are quoted, so that no two places have the same name."""


@dataclass(frozen=True)
class Manifest:
    """One cache's manifest; everything but `views` is fixed once the folder is there."""

    identity: dict[str, Any]
    """What decides the bytes of records (teacher, data, views' scheme, record, precision, fold, ...): plain JSON."""
    rows: int
    rows_hash: str
    """`hash_of_rows` of the rows that are held."""
    record_bytes: int
    block_rows: int
    shard_records: int
    """Records a file, a multiple of `block_rows`: no block straddles two files."""
    views: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", json.loads(_canonical(self.identity)))  # tuples as they are read back
        for name in ("rows", "record_bytes", "block_rows", "shard_records", "views"):
            if getattr(self, name) < 1:
                raise CacheError(f"{name} of a cache must be above 0, not {getattr(self, name)}")
        if self.shard_records % self.block_rows:
            raise CacheError(f"shard_records {self.shard_records} is no multiple of block_rows {self.block_rows}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity, in hex."""
        return digest_of(self.identity)

    @property
    def folder_name(self) -> str:
        """How the folder of this cache is called."""
        return self.digest[:DIGEST_CHARACTERS]

    @property
    def blocks_per_view(self) -> int:
        """Blocks of one view; the last one may be padded."""
        return -(-self.rows // self.block_rows)

    @property
    def blocks(self) -> int:
        """Blocks of all views."""
        return self.views * self.blocks_per_view

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, padding included."""
        return self.block_rows * self.record_bytes

    @property
    def shards(self) -> int:
        """How many files the records lie in."""
        return -(-self.blocks * self.block_rows // self.shard_records)

    def document(self) -> dict[str, Any]:
        """What `of` takes up: plain JSON, the same for equal manifests."""
        return {"schema": SCHEMA, "digest": self.digest, **asdict(self)}

    @classmethod
    def of(cls, document: Any, where: str = "the manifest") -> Manifest:
        """Take up a document.

        Args:
            document: what was read.
            where: how messages call the place it was read from.

        Raises:
            CacheStale: it was made by a later kdscale.
            CacheCorrupt: it is no manifest.
        """
        mend = "remove the folder and fill it again"
        schema = document.get("schema") if isinstance(document, Mapping) else None
        if type(schema) is int and schema > SCHEMA:
            raise CacheStale(
                f"{where}: made by a later kdscale, schema {schema}; this one reads {SCHEMA}: update, or fill another"
            )
        kinds = {"schema": int, "identity": dict, "rows_hash": str}
        kinds = {field.name: int for field in fields(cls)} | kinds
        wrong = [
            n for n, kind in kinds.items() if not isinstance(document, Mapping) or type(document.get(n)) is not kind
        ]
        if wrong or schema != SCHEMA:
            raise CacheCorrupt(f"{where} is no manifest of a cache ({', '.join(wrong) or 'schema'}): {mend}")
        try:
            manifest = cls(**{field.name: document[field.name] for field in fields(cls)})
        except CacheError as error:
            raise CacheCorrupt(f"{where}: {error}: {mend}") from error
        if document.get("digest") != manifest.digest:
            raise CacheCorrupt(f"{where}: its digest is not that of its identity, somebody edited it: {mend}")
        return manifest


def digest_of(identity: Mapping[str, Any]) -> str:
    """SHA-256 of an identity's canonical JSON (sorted keys, no blanks, ASCII), in hex."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()


def hash_of_rows(rows: NDArray[np.int64]) -> str:
    """XXH3-128 of rows.bin, in hex."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows, "<i8").data)


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Compare two documents of plain JSON.

    Returns:
        One line per dotted key that differs: "teacher.weights: expected 3f21ab.., found 9a04c7..".
    """
    wanted, given = dict(_leaves(expected)), dict(_leaves(found))
    keys = sorted(wanted.keys() | given.keys())
    return [_line(key, wanted.get(key), given.get(key)) for key in keys if wanted.get(key) != given.get(key)]


def _line(key: str, expected: str | None, found: str | None) -> str:
    """Long texts are digests, of which the beginning tells enough, unless it is the same."""
    sides = ["nothing" if side is None else side for side in (expected, found)]
    short = [side if len(side) <= 2 * SHORT else f"{side.strip(chr(34))[:SHORT]}.." for side in sides]
    left, right = short if short[0] != short[1] else sides
    return f"{key}: expected {left}, found {right}"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each value that holds no others, as JSON: 1, 1.0 and true are three different things in a digest."""
    if isinstance(value, Mapping) and (value or not key):
        inner = [(name if PLAIN.fullmatch(name) else json.dumps(name), item) for name, item in value.items()]
    elif isinstance(value, list | tuple) and value:
        inner = [(str(index), item) for index, item in enumerate(value)]
    else:
        yield key, _canonical(value)
        return
    for name, item in inner:
        yield from _leaves(item, f"{key}.{name}" if key else name)


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CacheError(f"the identity of a cache must be plain JSON: {error}") from error
