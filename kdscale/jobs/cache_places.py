"""Where teacher caches lie, who has a need of each, and what a name means on `launch/cache.py`'s command line.

3f21ab                     a cache by the beginning of its digest
birds:student[crd,s1]      the cache that a student reads, or that a fill stage fills; so is any other name of a stage
runs/caches/3f21ab45cd67   or any file in it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdscale.cache.folder import CacheFolder
from kdscale.cache.layout import Layout
from kdscale.errors import CacheError, ConfigError, StageError
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.cache_need import CacheNeed
from kdscale.pipeline.names import resolve
from kdscale.pipeline.stage_names import visible_folders

__all__ = ["CachePlace", "CacheUse", "cache_named", "caches_of"]


@dataclass(frozen=True)
class CacheUse:
    """A stage that reads a cache, or fills it."""

    stage: StageFolder
    fills: bool
    """Whether filling is all it does."""
    role: str
    """What a student calls the teacher."""
    need: CacheNeed
    weights: str | None
    """Hash of the teacher's weights that it took, or would take now; None before the teacher is done."""

    @property
    def state(self) -> str:
        """Of the stage, as it is now."""
        return str(self.stage.state()["state"])


@dataclass
class CachePlace:
    """One folder under `caches`, of this root or of one to reuse from."""

    path: Path
    writable: bool
    folder: CacheFolder | None
    """None where it cannot be opened."""
    problem: str = ""
    """Why it cannot."""
    uses: list[CacheUse] = field(default_factory=list)
    """Stages that need just this cache, or that would if their teacher had the weights it was made from."""

    @property
    def opened(self) -> CacheFolder:
        """The cache. Raises: CacheError where it cannot be opened."""
        if self.folder is None:
            raise CacheError(self.problem)
        return self.folder

    @cached_property
    def layout(self) -> Layout:
        """Of its records. Raises: CacheError."""
        return Layout.of(self.opened.manifest.identity["record"])

    @property
    def teacher(self) -> dict[str, str]:
        """Of its identity: stage, selector, weights. Raises: CacheError."""
        known = self.opened.manifest.identity.get("teacher")
        if not isinstance(known, dict) or not {"stage", "selector", "weights"} <= known.keys():
            raise CacheError(f"{self.path / 'manifest.json'} does not say whose answers it holds")
        return known

    @property
    def last_used(self) -> float:
        """The newest sign of life: its files, and the stages that read or fill it, unix time."""
        files = [file.stat().st_mtime for file in self.path.iterdir()] if self.path.is_dir() else []
        return max(
            [*files, *(float(use.stage.state()["updated"]) for use in self.uses if self.is_of(use))], default=0.0
        )

    def is_of(self, use: CacheUse) -> bool:
        """Whether a use is of these very weights, as far as is known."""
        return use.weights is None or use.weights == self.teacher["weights"]


def caches_of(root: Root) -> list[CachePlace]:
    """All caches of a root, then those of the roots to reuse from, each with the stages that need it."""
    found = [_open(path, own=own) for path, own in _folders(root)]
    needed: dict[str, list[CacheUse]] = {}
    for use in _uses(root) if found else ():
        needed.setdefault(_key(use.need.identity("")), []).append(use)
    for place in found:
        if place.folder is not None:
            place.uses = needed.get(_key(place.folder.manifest.identity), [])
    return found


def cache_named(text: str, root: Root) -> CachePlace:
    """Find the cache that a name means.

    Raises:
        ConfigError: it means none, or several; lists them.
    """
    text, places = text.strip(), caches_of(root)
    if ":" not in text and "/" not in text and not text.startswith((".", "~")):
        found = [p for p in places if _begins(text, p)]
        found = found[:1] if len({p.path.name for p in found}) == 1 else found
    else:
        path = Path(text).expanduser().absolute()
        found = [p for p in places if p.path.resolve() in (path.resolve(), *path.resolve().parents)]
    if not found:
        found = _of_stage(text, root, places)
    if len(found) != 1:
        raise _not_one(text, found, places, root)
    return found[0]


# --------------------------------------------------------------------------- who needs what


def _uses(root: Root) -> Iterator[CacheUse]:
    for stage in root.stages():
        try:
            definition, consumed = stage.definition(), stage.state().get("consumed", {})
            for role, document in _needs(definition):
                need, fills = CacheNeed.of(document), definition["kind"] == "fill"
                weights = consumed.get(role) or _weights(need, root)
                yield CacheUse(stage, fills, role, need, weights)
        except (StageError, CacheError, KeyError, TypeError):  # laid out by another version, or taken out meanwhile
            continue


def _needs(definition: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a stage asks of caches, by the teacher's role."""
    if definition["kind"] == "fill":
        return [("teacher", definition["need"])]
    return [(role, entry["need"]) for role, entry in definition.get("caches", {}).items()]


def _weights(need: CacheNeed, root: Root) -> str | None:
    teacher = root.stage(need.teacher)
    state = teacher.state() if teacher is not None else {}
    known = state.get("weights", {}).get(need.selector) if state.get("state") == "done" else None
    return None if known is None else str(known)


def _key(identity: Mapping[str, Any]) -> str:
    """An identity, whatever weights its teacher had."""
    teacher = identity.get("teacher")
    bare = {**identity, "teacher": {**teacher, "weights": ""} if isinstance(teacher, Mapping) else teacher}
    return json.dumps(bare, sort_keys=True)


# --------------------------------------------------------------------------- names


def _folders(root: Root) -> Iterator[tuple[Path, bool]]:
    for place in (root.path, *root.reuse):
        for path in sorted(visible_folders(place / "caches")):
            yield path, place == root.path


def _open(path: Path, *, own: bool) -> CachePlace:
    try:
        folder = CacheFolder.open(path)
    except CacheError as error:
        return CachePlace(path, own, None, str(error))
    folder.writable = folder.writable and own
    return CachePlace(path, folder.writable, folder)


def _begins(text: str, place: CachePlace) -> bool:
    digest = place.path.name if place.folder is None else place.folder.manifest.digest
    return len(text) >= 2 and digest.startswith(text.lower())


def _of_stage(text: str, root: Root, places: list[CachePlace]) -> list[CachePlace]:
    """The caches of a stage by any of its names. Raises: ConfigError where it has a name, but no cache."""
    try:
        stage = resolve(text, root)
    except ConfigError as error:
        if ":" in text:
            raise
        raise ConfigError(f"{error}; {_there(places)}") from None
    if isinstance(stage, SweepFolder):
        raise ConfigError(
            f"{text} is a sweep: name a student of it that reads a cache, as {text}:STAGE; {_there(places)}"
        )
    found = [p for p in places if any(use.stage.path == stage.path and p.is_of(use) for use in p.uses)]
    if not found:
        needs = _needs(stage.definition())
        why = "is not filled yet" if needs else "reads and fills no cache"
        raise ConfigError(f"{text}: {stage.path.name} {why}; {_there(places)}")
    return found


def _not_one(text: str, found: list[CachePlace], places: list[CachePlace], root: Root) -> ConfigError:
    if found:
        return ConfigError(f"{text!r} could be any of the caches {_listed(found)}")
    return ConfigError(f"nothing under {root.path} is called {text!r}; {_there(places)}")


def _there(places: list[CachePlace]) -> str:
    return f"its caches are {_listed(places)}" if places else "there is no cache (another --runs?)"


def _listed(places: list[CachePlace]) -> str:
    return ", ".join(dict.fromkeys(place.path.name for place in places))
