"""What a teacher cache holds, how whole it is, and who reads it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdscale.cache.layout import Layout
from kdscale.errors import CacheError
from kdscale.jobs.cache_places import CachePlace, CacheUse, cache_named, caches_of
from kdscale.jobs.storage import measure
from kdscale.jobs.wording import ago, size
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.names import names_in, sweep_name

__all__ = ["describe", "info", "record_phrase"]

SHORT = 12
TITLES = ("cache", "teacher", "record", "views", "rows", "blocks", "on disk", "readers", "used", "")
RIGHT = frozenset({"views", "rows", "blocks", "on disk"})


def info(root: Root, name: str | None, console: Console, *, as_json: bool) -> int:
    """List all caches, or say all about one; returns 1 where one cannot be opened."""
    places = [cache_named(name, root)] if name else caches_of(root)
    names = _names(root)
    if as_json:
        found = [describe(place, root, names) for place in places]
        document = {"schema": 1, "root": str(root.path), "caches": found}
        console.print(json.dumps(document), markup=False, highlight=False, soft_wrap=True)
    elif not places:
        console.print(Text(f"{root.path} holds no teacher cache (another --runs?)"), soft_wrap=True)
    elif name:
        for label, text in _lines(describe(places[0], root, names)):
            console.print(Text(f" {label:<10}", style="dim").append(text, style="not dim"), soft_wrap=True)
    else:
        console.print(_table([describe(place, root, names) for place in places]))
    return int(any(place.folder is None for place in places))


def describe(place: CachePlace, root: Root, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Everything there is to say about a cache, as `--json` prints it.

    Args:
        place: the cache.
        root: where its teacher is looked for.
        names: what stages are called in sweeps, by the first 12 digits of their digests.
    """
    known: dict[str, Any] = {
        "cache": place.path.name, "path": str(place.path), "writable": place.writable, "problem": place.problem,
        "bytes": measure(place.path)[0], "last_used": place.last_used,
    }  # fmt: skip
    try:
        return known | _contents(place, root, names)
    except CacheError as error:
        return known | {"problem": str(error)}


def record_phrase(layout: Layout) -> str:
    """What a record holds, in a few words: `dense fp32, 40 B`."""
    kept = f"top {layout.k} + {layout.residual}" if layout.kind == "topk" else layout.kind.replace("_", " ")
    return f"{kept}{', pooled' if layout.pooled else ''}, {layout.record_bytes} B"


def _contents(place: CachePlace, root: Root, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    manifest, layout = place.opened.manifest, place.layout
    record = {key: value for key, value in layout.document().items() if key != "fields"}
    used = [use for use in place.uses if place.is_of(use)]
    return {
        "digest": manifest.digest, "teacher": _teacher(place, root), "data": manifest.identity["data"],
        "record": record, "holds": record_phrase(layout), "precision": manifest.identity["precision"],
        "fold": manifest.identity["fold"], "rows": manifest.rows, "views": manifest.views,
        "blocks": manifest.blocks - len(place.opened.missing()), "blocks_in_all": manifest.blocks,
        "block_rows": manifest.block_rows, "made": (place.path / "rows.bin").stat().st_mtime,
        "readers": [_user(use, names.get(use.stage.digest12, ())) for use in used if not use.fills],
        "fillers": [_user(use, ()) for use in used if use.fills],
    }  # fmt: skip


def _user(use: CacheUse, names: Sequence[str]) -> dict[str, Any]:
    """A stage that has the cache; fill stages belong to no trial, so only their folders name them."""
    return {"stage": use.stage.path.name, "role": use.role, "state": use.state, "names": list(names)}


def _names(root: Root) -> dict[str, list[str]]:
    """What stages are called in sweeps."""
    found: dict[str, list[str]] = {}
    for sweep in root.sweeps():
        for digest, name in names_in(sweep.plan(), sweep_name(sweep)).items():
            found.setdefault(digest[:12], []).append(name)
    return found


def _teacher(place: CachePlace, root: Root) -> dict[str, Any]:
    """Whose answers, and whether that teacher still is what it was."""
    known = place.teacher
    stage = root.stage(known["stage"])
    now = stage.state().get("weights", {}).get(known["selector"]) if stage is not None else None
    there = "gone" if now is None else "same" if now == known["weights"] else "retrained"
    return {**known, "name": stage.path.name if stage is not None else None, "now": there}


# --------------------------------------------------------------------------- screens


def _table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in TITLES:
        table.add_column(title, justify="right" if title in RIGHT else "left", overflow="fold")
    for one in found:
        table.add_row(*(Text(cell) for cell in _row(one)))
    return table


def _row(one: Mapping[str, Any]) -> list[str]:
    marks = [] if one["writable"] else ["read-only"]
    if one["problem"]:
        marks.append("cannot be opened: " + one["problem"])
        return [one["cache"], "", "", "", "", "", size(one["bytes"]), "", ago(one["last_used"]), ", ".join(marks)]
    if one["teacher"]["now"] != "same":
        marks.append(f"its teacher is {one['teacher']['now']}")
    return [
        one["cache"], _teacher_phrase(one["teacher"]), one["holds"], str(one["views"]), f"{one['rows']:,}",
        f"{one['blocks']:,}/{one['blocks_in_all']:,}", size(one["bytes"]), _states(one["readers"]),
        ago(one["last_used"]), ", ".join(marks),
    ]  # fmt: skip


def _lines(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    head = [("cache", one["cache"]), ("path", one["path"] + ("" if one["writable"] else "   read-only"))]
    if one["problem"]:
        return [*head, ("problem", one["problem"])]
    readers = [("read by", _reader_phrase(reader)) for reader in one["readers"]] or [("read by", "nobody that is left")]
    return [
        *head,
        ("teacher", _teacher_phrase(one["teacher"], long=True)),
        ("answers", f"in {one['precision']}{', BatchNorm folded' if one['fold'] else ''}"),
        ("data", _data_phrase(one["data"])),
        ("record", one["holds"] + _temperatures(one["record"]["temperatures"])),
        ("holds", f"{one['views']} views of {one['rows']:,} rows"),
        ("blocks", f"{one['blocks']:,} of {one['blocks_in_all']:,} are there ({one['block_rows']} records each)"),
        ("on disk", size(one["bytes"])),
        *readers,
        *(("filled by", _reader_phrase(filler)) for filler in one["fillers"]),
        ("made", f"{ago(one['made'])}, last used {ago(one['last_used'])}"),
    ]


def _teacher_phrase(teacher: Mapping[str, Any], *, long: bool = False) -> str:
    name = str(teacher["name"] or teacher["stage"][:SHORT])
    name += "" if teacher["selector"] == "last" else f"@{teacher['selector']}"
    if not long:
        return name
    now = {"same": "", "gone": "; it is not under this root any more", "retrained": "; it has other weights now"}
    return f"{name}   weights {teacher['weights'][:SHORT]}{now[teacher['now']]}"


def _data_phrase(data: Mapping[str, Any]) -> str:
    views, split = data["views"], data["split"]
    augment = ", ".join(f"{key} {value}" for key, value in views["augment"].items()) or "no augmentation"
    limit = f", the first {split['limit']:,}" if split["limit"] else ""
    kept = f"{split['val_fraction']:g} for validation{limit}"
    return f"{data['fingerprint'][:SHORT]}   {views['size']} px, {augment}, {kept}"


def _temperatures(known: Sequence[float]) -> str:
    return f", temperatures {', '.join(f'{t:g}' for t in known)}" if known else ", any temperature"


def _reader_phrase(reader: Mapping[str, Any]) -> str:
    return f"{', '.join(reader['names']) or reader['stage']}   {reader['state']}"


def _states(readers: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(reader["state"] for reader in readers)
    return " · ".join(f"{state} {count}" for state, count in counts.items()) or "none"
