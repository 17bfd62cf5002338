"""What is designed and not built yet: each says so, and none is ignored. What gets built loses its line here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from kdscale.config.complaints import KeyedError

__all__ = ["refuse_what_is_not_built"]

_STAGE = r"stages\.[^.]+"
_NOT_BUILT: list[tuple[str, tuple[Any, ...], str]] = [
    # key pattern, values that are built, what to say
    (rf"{_STAGE}\.export", (None,), "exports are not built yet; leave it out"),
]
_PATTERNS = [(re.compile(pattern), built, said) for pattern, built, said in _NOT_BUILT]


def refuse_what_is_not_built(values: Mapping[str, Any]) -> None:
    """Look through a config. Raises: KeyedError for the first part of the language that is not built."""
    for key, value in _keys(values):
        for pattern, built, said in _PATTERNS:
            if pattern.fullmatch(key) and value not in built:
                raise KeyedError(key, said)


def _keys(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of nested mappings, with its value."""
    if isinstance(values, dict):
        for key, value in values.items():
            path = f"{at}.{key}" if at else str(key)
            yield path, value
            yield from _keys(value, path)
