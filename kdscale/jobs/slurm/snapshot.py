"""The code that jobs run: a copy made when they are submitted, of kdscale and of the user's plug-ins.

    runs/code/<hash12>/kdscale/ ...  plugins/ ...

An edit afterwards reaches the next submission, not jobs that wait in the queue. Equal code is kept once, and with it
what numba has compiled of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import xxhash

import kdscale
from kdscale import atomic
from kdscale.pipeline.planned import Plan

__all__ = ["code_of", "take_snapshot"]

LEFT_OUT = frozenset({"__pycache__", ".git"})


def take_snapshot(root: Path, plan: Plan) -> Path:
    """Copy the code that a plan's stages need, unless it is there already; returns its folder."""
    files = sorted(code_of(plan), key=lambda pair: str(pair[0]))
    state = xxhash.xxh3_128()
    for place, source in files:
        state.update(str(place).encode())
        state.update(source.read_bytes())
    target = root / "code" / state.hexdigest()[:12]
    if target.is_dir():
        return target
    with atomic.aside(target) as side:
        (side / "plugins").mkdir(parents=True)
        for place, source in [*files, *_compiled(files)]:
            copy = side / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError) if source.parent.name == "__pycache__" else nullcontext():
                shutil.copy2(source, copy)  # with its date: numba trusts what it compiled of a file of that date only
    return target


def _compiled(files: Sequence[tuple[Path, Path]]) -> Iterator[tuple[Path, Path]]:
    """What numba has left beside the sources, or the first job of each snapshot would compile for ten seconds."""
    for folder, place in {source.parent: place.parent for place, source in files}.items():
        for found in sorted((folder / "__pycache__").glob("*.nb[ic]")):
            yield place / "__pycache__" / found.name, found


def code_of(plan: Plan) -> Iterator[tuple[Path, Path]]:
    """Where each file goes, and where it is."""
    package = Path(kdscale.__file__).parent
    for source in _below(package):
        yield Path("kdscale") / source.relative_to(package), source
    specs = [stage.definition["spec"].get("plugins", {}) for stage in plan.stages.values()]
    wanted = {(folder, name) for spec in specs for folder in spec.get("path", []) for name in spec.get("allow", [])}
    for folder, name in sorted(wanted):
        base = Path(folder).resolve()
        found = [base / f"{name}.py"] if (base / f"{name}.py").is_file() else [*_below(base / name)]
        for source in found:
            yield Path("plugins") / source.relative_to(base), source


def _below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not LEFT_OUT & set(path.relative_to(folder).parts):
            yield path
