"""What takes space under a run root, and what of it nobody needs any more."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdscale import atomic
from kdscale.jobs.lineage import Family, live_sweeps
from kdscale.pipeline.artifacts import Root, StageFolder

__all__ = ["CACHES", "Garbage", "Usage", "free", "garbage", "measure", "usage"]

LEFT_OVER_S = 24 * 3600.0
"""A temporary file that nobody touched for so long belongs to a process that is dead."""
BLOCK_OF_DISK = 512
"""What st_blocks counts in."""
REMOVED = ".removed"
CACHES = "teacher caches"
"""What `usage` calls them."""


@dataclass
class Usage:
    """Space that one kind of thing takes."""

    kind: str
    note: str = ""
    bytes: int = 0
    files: int = 0

    def add(self, path: Path) -> None:
        """Count a file, or all files under a folder."""
        count, files = measure(path)
        self.bytes += count
        self.files += files


class Garbage(NamedTuple):
    """Something that may be deleted."""

    path: Path
    why: str
    bytes: int
    folder: StageFolder | None
    """The stage it belongs to; it is not touched while somebody runs it."""
    students: int = 0
    """Finished networks among it."""


def usage(root: Root) -> list[Usage]:
    """Space by kind, the largest first; of this root only."""
    kinds = {
        "done": Usage("checkpoints of done stages", "no longer needed: gc frees"),
        "open": Usage("checkpoints of unfinished stages", "they go on from them"),
        "students": Usage("students (snapshots)"),
        "data": Usage("converted data"),
        "caches": Usage(CACHES),
        "records": Usage("logs, metrics and states"),
        "sweeps": Usage("plans and reports"),
        "tracking": Usage("tracking (MLflow)"),
        "removed": Usage("taken out by rm, or made anew", "gc frees"),
        "other": Usage("everything else"),
    }
    for folder in _own(root):
        _count_stage(folder, kinds)
    for path in _children(root.path):
        kind = {"caches": "caches", "sweeps": "sweeps", "mlflow.db": "tracking", "mlartifacts": "tracking"}.get(
            path.name
        )
        if path.name != "stages":
            kinds[kind or "other"].add(path)
    for path in _children(root.path / "stages"):
        if path.name.startswith("."):
            kinds["removed" if path.name == REMOVED else "other"].add(path)
    return sorted((k for k in kinds.values() if k.bytes), key=lambda kind: -kind.bytes)


def garbage(root: Root, *, older_s: float | None = None, keep_students: bool = False) -> list[Garbage]:
    """What may go: never a pinned stage or its ancestors, nor anything that somebody runs.

    Without `older_s`: checkpoints of done stages, what was taken out, what killed writers left. With it, only what
    nothing touched for so long, and then whole stages too, unless a live sweep, a sweep planned since, or a stage
    that stays needs them.

    Args:
        root: this root; roots to reuse from are never touched.
        older_s: age in seconds.
        keep_students: of old stages keep the finished networks with their records.
    """
    family = Family(root)
    now = time.time()
    before = now if older_s is None else now - older_s
    pinned = family.ancestors(folder.digest12 for folder in family.stages.values() if folder.pinned())
    idle = [f for f in _own(root) if f.claimant() is None and f.digest12 not in pinned and _touched(f) <= before]
    unneeded = _unneeded(root, family, pinned, before) if older_s is not None else set()
    found: list[Garbage] = []
    for folder in idle:
        done_network = folder.state()["state"] == "done" and folder.snapshots.is_dir()
        if folder.digest12 in unneeded and not (keep_students and done_network):
            what = "finished, and nobody needs it" if done_network else "unfinished or data, and nobody needs it"
            found.append(Garbage(folder.path, what, measure(folder.path)[0], folder, int(done_network)))
        else:
            found += _of_stage(folder)
    return [*found, *_removed(root, before)]


def free(found: Iterable[Garbage]) -> Iterator[tuple[Garbage, str]]:
    """Delete garbage; yields each thing with what prevented it, or an empty text."""
    for item in found:
        try:
            _delete(item)
            yield item, ""
        except Exception as error:  # noqa: BLE001 - one stage that was just taken up must not keep the rest
            yield item, str(error)


def measure(path: Path) -> tuple[int, int]:
    """Bytes and number of files under a path; links count as nothing, and so do holes, as of a half-filled cache."""
    if path.is_symlink():
        return 0, 0
    if path.is_file():
        return _occupied(path.stat()), 1
    count = files = 0
    for parent, _, names in os.walk(path):
        for name in names:
            try:
                found = (Path(parent) / name).lstat()
            except FileNotFoundError:
                continue
            count, files = count + _occupied(found), files + 1
    return count, files


# --------------------------------------------------------------------------- inner parts


def _occupied(found: os.stat_result) -> int:
    return min(found.st_size, found.st_blocks * BLOCK_OF_DISK)


def _own(root: Root) -> list[StageFolder]:
    return [folder for folder in root.stages() if folder.writable]


def _count_stage(folder: StageFolder, kinds: dict[str, Usage]) -> None:
    done = folder.state()["state"] == "done"
    for path in _children(folder.path):
        if path.name == "checkpoints":
            kinds["done" if done else "open"].add(path)
        else:
            kinds[{"snapshots": "students", "store": "data"}.get(path.name, "records")].add(path)


def _touched(folder: StageFolder) -> float:
    return float(folder.state()["updated"])


def _unneeded(root: Root, family: Family, pinned: set[str], before: float) -> set[str]:
    """Old stages that nothing needs which stays."""
    recent = [s for s in root.sweeps() if s.plan_file.stat().st_mtime > before]
    needed = [digest for sweep in (*recent, *live_sweeps(root)) for digest in sweep.plan()["stages"]]
    young = [f.digest12 for f in family.stages.values() if f.writable and (_touched(f) > before or f.claimant())]
    stays = family.ancestors([*pinned, *needed, *young])
    return set(family.stages) - stays


def _of_stage(folder: StageFolder) -> Iterator[Garbage]:
    """What a stage that stays can do without."""
    done = folder.state()["state"] == "done"
    size, files = measure(folder.checkpoints) if done else (0, 0)
    if files:
        yield Garbage(folder.checkpoints, "checkpoints of a done stage", size, folder)
    for parent in (folder.path, folder.snapshots, *(() if done else (folder.checkpoints,))):
        for path in _children(parent):
            if _left_over(path):
                yield Garbage(path, "left by a writer that was killed", measure(path)[0], folder)


def _left_over(path: Path) -> bool:
    temporary = path.name.startswith(".") and path.name.endswith((".tmp", ".old"))
    named = temporary or path.name.startswith((".dropped.", "damaged_step_"))
    return named and time.time() - path.lstat().st_mtime > LEFT_OVER_S


def _removed(root: Root, before: float) -> Iterator[Garbage]:
    for parent in (root.path / "stages" / REMOVED, root.path / "sweeps" / REMOVED):
        for path in _children(parent):
            note = atomic.read_json(path / "removed.json") or {}
            if note.get("when", 0.0) <= before:
                yield Garbage(path, f"taken out: {note.get('reason', 'no reason given')}", measure(path)[0], None)


def _delete(item: Garbage) -> None:
    if item.folder is None:
        shutil.rmtree(item.path)
    elif item.path == item.folder.path:
        shutil.rmtree(item.folder.take_out(item.why))
    else:
        item.folder.drop(item.path)


def _children(parent: Path) -> Sequence[Path]:
    return sorted(parent.iterdir()) if parent.is_dir() else ()
