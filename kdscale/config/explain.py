"""Why two stages are not the same: their differing keys, and the nearest of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from kdscale.config.merging import called
from kdscale.config.schema import StageSpec

__all__ = ["Difference", "default_of", "differences", "nearest"]

Difference = tuple[str, Any, Any]
"""Dotted key, value there, value here; None where a key is at its default."""

Key = TypeVar("Key")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> list[Difference]:
    """Keys in which two identities differ, in the order of the new one."""
    found: list[Difference] = []
    for key in [*new, *(k for k in old if k not in new)]:
        path = f"{at}.{key}" if at else str(key)
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, path)
        elif isinstance(was, list) and isinstance(now, list):
            found += differences(_by_name(was), _by_name(now), path)
        elif was != now:
            found.append((path, was, now))
    return found


def nearest(
    candidates: Iterable[tuple[Key, Mapping[str, Any]]], new: Mapping[str, Any]
) -> tuple[Key, list[Difference]] | None:
    """The candidate with the fewest differing keys, and those keys; None without candidates."""
    judged = [(key, differences(old, new)) for key, old in candidates]
    return min(judged, key=lambda one: len(one[1])) if judged else None


def default_of(key: str) -> Any:
    """The default of a key of a stage, which an identity leaves out; None where the schema has none."""
    at: Any = StageSpec
    *path, last = key.split(".")
    for part in path:
        field = at.model_fields.get(part)
        at = field.annotation if field else None
        if not (isinstance(at, type) and issubclass(at, BaseModel)):
            return None
    field = at.model_fields.get(last)
    return None if field is None or field.is_required() else field.get_default(call_default_factory=True)


def _by_name(items: list[Any]) -> dict[str, Any]:
    return {
        called(item) if isinstance(item, Mapping) and ("id" in item or "name" in item) else str(i): item
        for i, item in enumerate(items)
    }
