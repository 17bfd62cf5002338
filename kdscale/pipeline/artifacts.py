"""What lies under a run root: stages by digest, sweeps by name.

    runs/sweeps/<name>-<digest8>/    sweep.yaml  plan.json  launcher.json (while a launcher lives)
    runs/stages/<name>-<digest12>/   see stage_folder.py
    runs/caches/<digest12>/          see cache/folder.py

Roots named in `$KDSCALE_REUSE` are searched after the own one; they are read, never written.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdscale import atomic
from kdscale.errors import CacheError, CacheMiss, CacheStale, ConfigError, StageError
from kdscale.pipeline.claims import Claim, holder_of, lock_of, locked
from kdscale.pipeline.new_stage import NewStage, lay_out
from kdscale.pipeline.stage_folder import AT_REST, UNDER_WAY, StageFolder
from kdscale.pipeline.stage_names import StageNames, visible_folders

if TYPE_CHECKING:  # NumPy, which screens do not need, is imported where a cache is opened
    from kdscale.cache.folder import CacheFolder
    from kdscale.cache.manifest import Manifest

__all__ = ["AT_REST", "UNDER_WAY", "Claim", "NewStage", "Root", "StageFolder", "SweepFolder"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MADE_UNDER_ONE_LOCK = 256
"""Folders of stages; more at once would keep another launcher waiting on a slow file system."""


class SweepFolder:
    """One sweep on disk.

    Args:
        path: runs/sweeps/<name>-<digest8>.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan_file = path / "plan.json"
        self._launcher = path / "launcher.json"

    def __repr__(self) -> str:
        return f"SweepFolder({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Name of the sweep, without its digest."""
        return self.path.name.rpartition("-")[0]

    @cached_property
    def root(self) -> Root:
        """The run root this sweep lies in, with the same roots to reuse from."""
        return Root(self.path.parent.parent, _reuse_roots())

    def plan(self) -> dict[str, Any]:
        """The planned trials and stages, from plan.json.

        Raises:
            ConfigError: there is none.
        """
        plan = atomic.read_json(self.plan_file)
        if not isinstance(plan, dict):
            raise ConfigError(f"{self.path} holds no plan.json: name a sweep (`python launch/runs.py ls` lists them)")
        return plan

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Be this sweep's launcher, for screens and for cancel; where one lives already, go along without the title."""
        claim = self._claim_launch()
        try:
            yield
        finally:
            if claim is not None:
                claim.release()

    def launcher(self) -> dict[str, Any] | None:
        """The live launcher of this sweep; None when there is none."""
        return holder_of(self._launcher)

    def _claim_launch(self) -> Claim | None:
        try:
            with locked(lock_of(self._launcher)):
                return Claim.take(self._launcher).begin(silent_s=math.inf)  # it protects nothing but says who to ask
        except StageError:
            return None


class Root:
    """A folder of runs, and others to take finished stages from.

    Args:
        path: The root that is written; need not exist yet.
        reuse: Read-only roots, searched in order after it.
    """

    def __init__(self, path: Path, reuse: Sequence[Path] = ()) -> None:
        self.path = path.absolute()
        self.reuse = tuple(other.absolute() for other in reuse)
        self._names = {root: StageNames(root / "stages") for root in (self.path, *self.reuse)}

    @classmethod
    def find(cls, flag: Path | None = None) -> Root:
        """The root that a command means: `--runs`, else $KDSCALE_RUNS, else ./runs; with $KDSCALE_REUSE.

        Raises:
            ConfigError: it is a file.
        """
        path = Path(flag or os.environ.get("KDSCALE_RUNS") or "runs").expanduser()
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--runs {path}: is a file; name a folder")
        return cls(path, _reuse_roots())

    def stage(self, digest: str) -> StageFolder | None:
        """The stage of a digest (12 digits at least), whatever its name.

        In this root however far it is; else in a root to reuse from, where an unfinished one is somebody else's.
        """
        return self._chosen({root: names.find(digest) for root, names in self._names.items()})

    def stages_of(self, digests: Iterable[str]) -> dict[str, StageFolder]:
        """The same for many, by digest, at the price of one listing of each root; without those that have no folder."""
        for names in self._names.values():
            names.list()
        found = {d: self._chosen({r: names.seen(d) for r, names in self._names.items()}) for d in digests}
        return {digest: folder for digest, folder in found.items() if folder is not None}

    @property
    def caches(self) -> Path:
        """Where teacher caches are made."""
        return self.path / "caches"

    def cache(self, identity: Mapping[str, Any]) -> CacheFolder | None:
        """The teacher cache that was made from just this, with the most records; the own root's among equals.

        Raises:
            CacheStale, CacheCorrupt: what lies in its place is another, or damaged.
        """
        from kdscale.cache.folder import CacheFolder
        from kdscale.cache.manifest import digest_of

        name = digest_of(identity)[:12]
        found = []
        for root in self._names:
            if (root / "caches" / name).is_dir():
                cache = CacheFolder.open(root / "caches" / name, identity)
                cache.writable = cache.writable and root == self.path
                found.append(cache)
        return max(found, key=lambda cache: cache.manifest.blocks - len(cache.missing()), default=None)

    def needed_cache(self, identity: Mapping[str, Any]) -> CacheFolder:
        """The same, where there must be one.

        Raises:
            CacheStale: there is none, but one that the same teacher was asked for, which differs.
            CacheMiss: there is none at all.
        """
        from kdscale.cache.manifest import difference, digest_of

        found = self.cache(identity)
        if found is not None:
            return found
        mend = "give the sweep's command again, which fills it"
        for other in self.manifests():
            if other.identity["teacher"]["stage"] == identity["teacher"]["stage"]:
                differs = "\n  ".join(difference(identity, other.identity))
                raise CacheStale(
                    f"{self.caches} has no such cache; {other.digest[:12]} differs in\n  {differs}\n{mend}"
                )
        raise CacheMiss(f"{self.caches} has no cache {digest_of(identity)[:12]}: {mend}")

    def take_out_cache(self, identity: Mapping[str, Any]) -> None:
        """Delete the own root's cache of this identity, where there is one; readers see it whole or not at all."""
        from kdscale.cache.manifest import digest_of

        path = self.caches / digest_of(identity)[:12]
        if path.is_dir():
            aside = path.with_name(f".{path.name}.{time.time_ns()}.removed")
            path.rename(aside)
            shutil.rmtree(aside)

    def manifests(self) -> list[Manifest]:
        """Of all teacher caches that can be read."""
        from kdscale.cache.folder import read_manifest

        found = []
        for root in self._names:
            for path in visible_folders(root / "caches"):
                with suppress(CacheError):
                    found.append(read_manifest(path))
        return found

    def create_stage(self, name: str, digest: str) -> StageFolder:
        """Make the stage's folder in this root, unless its digest has one: the first name stays.

        Raises:
            ConfigError: the name cannot be a folder's.
        """
        return self.create_stages([NewStage(name, digest)])[0][0]

    def create_stages(self, wanted: Sequence[NewStage]) -> list[tuple[StageFolder, bool]]:
        """The same for many, each with whether it is new. Raises: ConfigError."""
        for one in wanted:
            if not _NAME.fullmatch(one.name):
                raise ConfigError(f"a stage cannot be called {one.name!r}: letters, digits, _ . - and no leading sign")
        stages = self.path / "stages"
        stages.mkdir(parents=True, exist_ok=True)
        found: list[tuple[StageFolder, bool]] = []
        for start in range(0, len(wanted), MADE_UNDER_ONE_LOCK):
            with locked(stages / ".lock"):
                found += self._create(wanted[start : start + MADE_UNDER_ONE_LOCK])
        return found

    def _create(self, wanted: Sequence[NewStage]) -> list[tuple[StageFolder, bool]]:
        """Made out of sight, flushed to the disk together, and renamed: a stage that is seen is whole."""
        names = self._names[self.path]
        names.list()
        stages = self.path / "stages"
        unseen = stages / ".new"
        shutil.rmtree(unseen, ignore_errors=True)
        found, made = [], []
        for one in wanted:
            known = names.seen(one.digest)
            path = known or stages / f"{one.name}-{one.digest[:12]}"
            if known is None:
                lay_out(unseen / path.name, one)
                made.append(path)
            found.append((StageFolder(path), known is None))
        if made:
            atomic.sync_file_system(unseen)
            for path in made:
                os.rename(unseen / path.name, path)
                names.add(path)
            atomic.sync_folder(stages)
            unseen.rmdir()
        return found

    def create_sweep(self, name: str, digest: str) -> SweepFolder:
        """Make a sweep's folder, or find it. Raises: ConfigError."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"a sweep cannot be called {name!r}: letters, digits, _ . - and no leading sign")
        folder = SweepFolder(self.path / "sweeps" / f"{name}-{digest[:8]}")
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    def stages(self) -> list[StageFolder]:
        """All stages by folder name; one that this root has hides the same of a root to reuse from."""
        found: dict[str, StageFolder] = {}
        for root in (self.path, *self.reuse):
            for path in self._names[root].list():
                folder = StageFolder(path, writable=root == self.path)
                found.setdefault(folder.digest12, folder)
        return sorted(found.values(), key=lambda folder: folder.path.name)

    def sweeps(self) -> list[SweepFolder]:
        """The sweeps of this root that have a plan, the most recently planned first."""
        planned = [SweepFolder(p) for p in visible_folders(self.path / "sweeps") if (p / "plan.json").exists()]
        return sorted(planned, key=lambda sweep: (-sweep.plan_file.stat().st_mtime_ns, sweep.path.name))

    def _chosen(self, places: Mapping[Path, Path | None]) -> StageFolder | None:
        """Which of a digest's folders counts."""
        own = places[self.path]
        if own is not None:
            return StageFolder(own)
        elsewhere = (StageFolder(place, writable=False) for place in places.values() if place is not None)
        return next((folder for folder in elsewhere if folder.state()["state"] == "done"), None)


def _reuse_roots() -> tuple[Path, ...]:
    return tuple(Path(p).expanduser() for p in os.environ.get("KDSCALE_REUSE", "").split(os.pathsep) if p)
