"""What a stage asks of a teacher's cache, in plain data; imports no torch, for screens and commands read it.

Needs that agree in `shared` are served by one cache: it holds the most rows, views and temperatures that any of them
asks for, none of which changes what a record says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdscale.cache.layout import Layout
from kdscale.config.digest import NUMERICS

__all__ = ["CacheNeed", "part_of"]

REVISION = 1
"""Raised whenever the bytes of records change for the same teacher and views."""


@dataclass(frozen=True)
class CacheNeed:
    """What a stage asks of the cache of one teacher."""

    teacher: str
    """Digest of its stage."""
    selector: str
    data: dict[str, Any]
    """What decides its images: fingerprint, view scheme, and the split that says which rows train."""
    layout: Layout
    precision: str
    fold: bool
    block_rows: int
    views: int
    shard_mb: int

    def identity(self, weights: str) -> dict[str, Any]:
        """What decides every byte of a record: what a cache is found by, and compared with.

        Args:
            weights: hash of the teacher's weights.
        """
        return {
            "teacher": {"stage": self.teacher, "selector": self.selector, "weights": weights},
            "data": self.data, "record": self.layout.document(), "precision": self.precision, "fold": self.fold,
            "block_rows": self.block_rows, "numerics": NUMERICS, "revision": REVISION,
        }  # fmt: skip

    @property
    def limit(self) -> int | None:
        """How many rows it holds, where the data section limits them."""
        found: int | None = self.data["split"]["limit"]
        return found

    @property
    def record(self) -> str:
        """What is kept of an answer, in a few words."""
        layout = self.layout
        return f"top {layout.k} + {layout.residual}" if layout.kind == "topk" else layout.kind.replace("_", " ")

    @property
    def entry(self) -> dict[str, Any]:
        """As plan.json holds it: who is asked, what is kept of the answers, and a `need` by which equal ones agree."""
        return {
            "need": hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()[:12],
            "teacher": self.teacher, "views": self.views, "record": self.record,
            "record_bytes": self.layout.record_bytes, "block_rows": self.block_rows,
        }  # fmt: skip

    @property
    def shared(self) -> str:
        """Needs that agree in this are served by one cache."""
        split = dict(self.data["split"])
        if not self.layout.mixing:  # a partner is drawn among the rows that train: others make other pictures
            del split["limit"]
        layout = replace(self.layout, temperatures=(1.0,) if self.layout.temperatures else ())
        return json.dumps(
            replace(self, layout=layout, views=0, shard_mb=0)._with_split(split).document(), sort_keys=True
        )

    def united(self, other: CacheNeed) -> CacheNeed:
        """What serves both; they agree in `shared`."""
        limit = None if self.limit is None or other.limit is None else max(self.limit, other.limit)
        temperatures = tuple(sorted({*self.layout.temperatures, *other.layout.temperatures}))
        layout = replace(self.layout, temperatures=temperatures)
        found = replace(self, layout=layout, views=max(self.views, other.views))
        return found._with_split({**self.data["split"], "limit": limit})

    def document(self) -> dict[str, Any]:
        """As a stage's definition holds it."""
        return {**asdict(self), "layout": self.layout.document()}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> CacheNeed:
        """Take up what `document` gave."""
        return cls(**{**document, "layout": Layout.of(document["layout"])})

    def _with_split(self, split: Mapping[str, Any]) -> CacheNeed:
        return replace(self, data={**self.data, "split": dict(split)})


def part_of(blocks: int, part: Sequence[int]) -> tuple[int, int]:
    """First block of a part, and the one behind its last.

    Args:
        blocks: of the whole cache.
        part: its number from 0, and how many there are.
    """
    number, parts = part
    return number * blocks // parts, (number + 1) * blocks // parts
