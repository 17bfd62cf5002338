"""Whom the steps of a replay ask: caches are read, and where they lack something the teacher answers in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdscale.api import Batch, Outputs, Teacher
from kdscale.cache.reader import CacheReader
from kdscale.cache.records import decode, encode
from kdscale.errors import CacheError
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.teachers.cached import CachedTeacher
from kdscale.teachers.ensemble import Ensemble
from kdscale.train.build import Parts

__all__ = ["heard"]


def heard(parts: Parts, definition: Mapping[str, Any], root: Root, notes: list[str]) -> Sequence[Teacher | Ensemble]:
    """Whom the steps ask: teachers with a cache through their records, as the stage heard them."""
    needs = {role: CacheNeed.of(entry["need"]) for role, entry in definition.get("caches", {}).items()}
    return [
        _Recorded(teacher, needs[teacher.name], parts, root, notes)
        if not isinstance(teacher, Ensemble) and teacher.name in needs
        else teacher
        for teacher in parts.teachers
    ]


class _Recorded:
    """A teacher heard through the records of its cache; where that lacks one, through the record that it would hold."""

    def __init__(self, live: Teacher, need: CacheNeed, parts: Parts, root: Root, notes: list[str]) -> None:
        self.name, self.provides = live.name, live.provides
        self._live, self._layout, self._notes = live, need.layout, notes
        folder = root.cache(need.identity(parts.consumed[live.name]))
        self._cached = None
        if folder is not None:
            reader = CacheReader(folder)
            self._cached = CachedTeacher(live.name, reader, need.layout, parts.device, _raise)

    def __call__(self, batch: Batch) -> Outputs:
        if self._cached is not None:
            try:
                return self._cached(batch)
            except CacheError:
                self._cached = None
        note = f"the cache of {self.name} lacks what is asked: it answers now, by what the record would hold"
        if note not in self._notes:
            self._notes.append(note)
        answer = self._live(batch)
        records = encode(
            answer.logits.float(), self._layout, labels=batch.labels, rows=batch.rows, view=batch.view,
            labels_b=batch.labels_b, pooled=answer.features[0].float() if self._layout.pooled else None,
        )  # fmt: skip
        return decode(
            records.to(batch.rows.device), self._layout, labels=batch.labels, labels_b=batch.labels_b, lam=batch.lam
        )

    def fingerprint(self) -> str:
        return self._live.fingerprint()


def _raise(batch: Batch, error: CacheError) -> None:
    del batch
    raise error
