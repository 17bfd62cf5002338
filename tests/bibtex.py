"""A strict reader of BibTeX, for what kdscale writes: entries of braced fields, and comments between them."""

from __future__ import annotations

import re

FIELD = re.compile(r"\s*([A-Za-z]+)\s*=\s*\{")


def parsed(text: str) -> dict[str, dict[str, str]]:
    """Fields by key, in the order of the file; `type` among them. A key twice, or anything else, is an error."""
    entries: dict[str, dict[str, str]] = {}
    at = 0
    while at < len(text):
        comment = re.compile(r"\s+|%[^@\n]*\n").match(text, at)
        if comment:
            at = comment.end()
            continue
        head = re.compile(r"@([a-z]+)\{([A-Za-z0-9_:-]+),").match(text, at)
        assert head, f"no entry: {text[at : at + 40]!r}"
        assert head[2] not in entries, f"{head[2]} twice"
        fields, at = _fields(text, head.end())
        entries[head[2]] = {"type": head[1]} | fields
    return entries


def _fields(text: str, at: int) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    while True:
        name = FIELD.match(text, at)
        assert name, f"no field: {text[at : at + 40]!r}"
        assert name[1] not in fields, f"{name[1]} twice"
        value, at = _braced(text, name.end())
        fields[name[1]] = " ".join(value.split())
        after = re.compile(r"\s*(,?)\s*(\}?)").match(text, at)
        assert after
        at = after.end()
        if after[2]:
            return fields, at
        assert after[1], f"no comma: {text[at : at + 40]!r}"


def _braced(text: str, start: int) -> tuple[str, int]:
    depth, at = 1, start
    while depth:
        assert at < len(text), "a brace is not closed"
        if text[at] == "\\":
            at += 1
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return text[start : at - 1], at
