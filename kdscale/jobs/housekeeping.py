"""`launch/runs.py` behind its command line: what lies under a run root, and keeping it in order."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdscale import atomic
from kdscale.errors import ConfigError, StageError
from kdscale.jobs.cache_places import caches_of
from kdscale.jobs.cache_spare import Needs, spare
from kdscale.jobs.lineage import Family, why
from kdscale.jobs.overview import ORDER, STYLE, SweepView
from kdscale.jobs.storage import CACHES, REMOVED, Garbage, free, garbage, measure, usage
from kdscale.jobs.wording import ago, figure, size
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import resolve, sweep_name

__all__ = ["du", "explain", "gc", "ls", "pin", "rm", "seconds"]

LISTED = 12
UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def ls(root: Root, name: str | None, console: Console, *, stages: bool, as_json: bool) -> int:
    """List the sweeps; or the stages, of one sweep or of the whole root."""
    rows = _stage_rows(root, name) if stages or name else _sweep_rows(root)
    if as_json:
        console.print(json.dumps({"schema": 1, "rows": rows}), markup=False, highlight=False, soft_wrap=True)
    elif rows:
        console.print(_table(rows))
    else:
        console.print(Text(f"{root.path} holds nothing yet (another --runs?)"), soft_wrap=True)
    return 0


def du(root: Root, console: Console, *, as_json: bool) -> int:
    """What takes space, by kind."""
    kinds = usage(root)
    for kind in kinds:
        if kind.kind == CACHES:
            kind.note = _about_caches(root)
    disk = shutil.disk_usage(root.path if root.path.exists() else root.path.parent)
    if as_json:
        rows = [{"kind": k.kind, "bytes": k.bytes, "files": k.files, "note": k.note} for k in kinds]
        document = {"schema": 1, "root": str(root.path), "free_bytes": disk.free, "kinds": rows}
        console.print(json.dumps(document), markup=False, highlight=False, soft_wrap=True)
        return 0
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for column in range(4):
        table.add_column(justify="right" if column < 2 else "left", no_wrap=column < 3)
    for kind in kinds:
        table.add_row(size(kind.bytes), f"{kind.files:,} files", kind.kind, Text(kind.note, style="dim"))
    total, files = sum(kind.bytes for kind in kinds), sum(kind.files for kind in kinds)
    table.add_row(Text(size(total), style="bold"), f"{files:,} files", Text(f"in {root.path}", style="bold"), "")
    table.add_row(size(disk.free), "", f"free of {size(disk.total)}", Text("quotas are not looked at", style="dim"))
    console.print(table)
    return 0


def gc(root: Root, console: Console, *, older: str | None, keep_students: bool, dry_run: bool, yes: bool) -> int:
    """Delete what nobody needs; returns 1 when something could not be."""
    found = garbage(root, older_s=seconds(older) if older else None, keep_students=keep_students)
    if note := _about_caches(root):
        console.print(Text(f"teacher caches are left as they are: {note}", style="dim"), soft_wrap=True)
    if not found:
        console.print("nothing to free")
        return 0
    _print_garbage(found, console)
    students = sum(item.students for item in found)
    if dry_run or not (students == 0 or yes or _agreed(f"this deletes {students} finished networks")):
        return 0
    freed, failed = 0, 0
    for item, problem in free(found):
        freed += 0 if problem else item.bytes
        if problem:
            failed += 1
            console.print(Text(f"kept {item.path.name}: {problem}", style="yellow"), soft_wrap=True)
    console.print(f"freed {size(freed)}", highlight=False)
    return int(failed > 0)


def pin(root: Root, name: str, console: Console, *, reason: str, off: bool) -> int:
    """Keep a stage, or a sweep's last stages, and what they were made from, from gc and rm."""
    for folder in _folders(root, name):
        if off:
            folder.unpin()
        else:
            folder.pin(reason)
        said = "no longer pinned" if off else "pinned, with all it was made from"
        console.print(Text(f"{folder.path.name} {said}"), soft_wrap=True)
    return 0


def rm(root: Root, name: str, console: Console, *, reason: str, dependants: bool) -> int:
    """Take a stage, or a sweep's folder, out of everybody's sight; gc deletes it."""
    found = resolve(name, root)
    if isinstance(found, SweepFolder):
        _take_out_sweep(found, reason, console)
        return 0
    if not found.writable:
        raise StageError(f"{found.path} lies in a read-only root (KDSCALE_REUSE)")
    made_from_it = Family(root).descendants(found.digest12)
    gone = [found, *(made_from_it if dependants else [])]
    for folder in (found, *made_from_it):
        _demand_unpinned(folder)
    for folder in gone:
        if folder.claimant():
            raise StageError(f"{folder.path.name} is being run: python launch/cancel.py {folder.digest12} first")
    for folder in gone:
        console.print(
            Text(f"took out {folder.path.name}   until gc it lies in {folder.take_out(reason)}"), soft_wrap=True
        )
    if made_from_it and not dependants:
        names = ", ".join(folder.path.name for folder in made_from_it[:LISTED])
        more = f" and {len(made_from_it) - LISTED} more" if len(made_from_it) > LISTED else ""
        console.print(Text(f"made from it, and still there: {names}{more}", style="yellow"), soft_wrap=True)
        console.print(Text("(--dependants takes them out too; a sweep makes them anew in any case)", style="dim"))
    return 0


def explain(root: Root, name: str, console: Console) -> int:
    """Say where a stage comes from and who uses it, or why a sweep's stages were made or reused."""
    for label, content in why(resolve(name, root), root):
        console.print(Text(f" {label:<12}", style="dim").append(content, style="not dim"), soft_wrap=True)
    return 0


def seconds(text: str, flag: str = "--older") -> float:
    """An age such as 14d, 12h or 30m. Raises: ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text}: a number with m, h, d or w, for example 14d")
    return float(match[1]) * UNITS_S[match[2]]


# --------------------------------------------------------------------------- inner parts


def _sweep_rows(root: Root) -> list[dict[str, Any]]:
    return [_sweep_row(sweep, root) for sweep in root.sweeps()]


def _sweep_row(sweep: SweepFolder, root: Root) -> dict[str, Any]:
    view = SweepView(sweep, root)
    return {
        "sweep": view.name, "planned": sweep.plan_file.stat().st_mtime, "trials": len(view.plan["trials"]),
        "stages": len(view.stages), "states": dict(view.counts()), "live": sweep.launcher() is not None,
    }  # fmt: skip


def _stage_rows(root: Root, name: str | None) -> list[dict[str, Any]]:
    users = _users(root)
    folders = _of_sweep(resolve(name, root), root) if name else root.stages()
    return [_stage_row(folder, users) for folder in folders]


def _stage_row(folder: StageFolder, users: Counter[str]) -> dict[str, Any]:
    state = folder.state()
    return {
        "stage": folder.path.name, "state": state["state"], "top1": (state.get("results") or {}).get("top1"),
        "touched": state["updated"], "bytes": measure(folder.path)[0], "sweeps": users[folder.digest12],
        "pinned": folder.pinned() is not None, "writable": folder.writable,
    }  # fmt: skip


def _users(root: Root) -> Counter[str]:
    """How many sweeps have each stage in their plan."""
    return Counter(digest[:12] for sweep in root.sweeps() for digest in sweep.plan()["stages"])


def _of_sweep(found: StageFolder | SweepFolder, root: Root) -> list[StageFolder]:
    if isinstance(found, StageFolder):
        return [found]
    folders = (root.stage(digest) for digest in found.plan()["stages"])
    return [folder for folder in folders if folder is not None]


def _about_caches(root: Root) -> str:
    """How many there are, and what `cache.py gc` would free of them; empty where there is none."""
    places = [place for place in caches_of(root) if place.path.parent == root.caches]
    freed = sum(item.bytes for item in spare(root, places, Needs(root))) if places else 0
    return f"{len(places)}, cache.py gc frees {size(freed) if freed else 'old ones'}" if places else ""


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    shown = [_shown(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in shown[0]:
        numeric = title in ("trials", "stages", "top-1", "size", "in sweeps")
        table.add_column(title, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*(Text(value, style=STYLE.get(value, "")) for value in row.values()))
    return table


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as people read it."""
    if "sweep" in row:
        states = " · ".join(f"{state} {row['states'][state]}" for state in reversed(ORDER) if state in row["states"])
        return {
            "sweep": row["sweep"], "planned": ago(row["planned"]), "trials": str(row["trials"]),
            "stages": str(row["stages"]), "states": states, "": "live" if row["live"] else "",
        }  # fmt: skip
    marks = [word for word, on in (("pinned", row["pinned"]), ("read-only", not row["writable"])) if on]
    return {
        "stage": row["stage"], "state": row["state"], "top-1": figure(row["top1"]), "size": size(row["bytes"]),
        "touched": ago(row["touched"]), "in sweeps": str(row["sweeps"]), "": ", ".join(marks),
    }  # fmt: skip


def _print_garbage(found: Sequence[Garbage], console: Console) -> None:
    for item in sorted(found, key=lambda item: -item.bytes)[:LISTED]:
        inside = item.folder is not None and item.path != item.folder.path
        name = f"{item.folder.path.name}/{item.path.name}" if inside and item.folder else item.path.name
        console.print(Text(f"{size(item.bytes):>9}  {name}   {item.why}"), soft_wrap=True)
    if len(found) > LISTED:
        console.print(Text(f"{'':9}  and {len(found) - LISTED} more"))
    console.print(Text(f"{size(sum(item.bytes for item in found)):>9}  in all", style="bold"))


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}: say --yes, or --keep-students")
    return input(f"{what}; go on? [y/N] ").strip().lower() in ("y", "yes")


def _folders(root: Root, name: str) -> list[StageFolder]:
    """A stage; of a sweep, the stages that no other of it is made from."""
    found = resolve(name, root)
    if isinstance(found, StageFolder):
        return [found]
    plan = found.plan()
    used = {parent["digest"] for entry in plan["stages"].values() for parent in entry["parents"]}
    return [folder for digest in plan["stages"] if digest not in used and (folder := root.stage(digest))]


def _demand_unpinned(folder: StageFolder) -> None:
    note = folder.pinned()
    if note:
        why_pinned = f" ({note['reason']})" if note["reason"] else ""
        raise StageError(
            f"{folder.path.name} is pinned by {note['by']}{why_pinned}, and with it what it was made from. Unpin it "
            f"first: python launch/runs.py pin {folder.path.name} --off"
        )


def _take_out_sweep(sweep: SweepFolder, reason: str, console: Console) -> None:
    if sweep.launcher():
        raise StageError(
            f"{sweep_name(sweep)} is running: python launch/cancel.py {shlex.quote(sweep_name(sweep))} first"
        )
    atomic.write_json(sweep.path / "removed.json", {"when": time.time(), "reason": reason})
    target: Path = sweep.path.parent / REMOVED / f"{sweep.path.name}.{time.time_ns()}"
    target.parent.mkdir(exist_ok=True)
    sweep.path.rename(target)
    console.print(Text(f"took out {sweep.path.name}   until gc it lies in {target}"), soft_wrap=True)
    console.print(Text("its stages stay; gc --older frees those that no other sweep needs", style="dim"))
