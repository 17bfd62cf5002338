"""`launch/sweep.py OUT.zip`: a bundle of `report.py --bundle` checked, unpacked, run again, and compared with itself.

runs/bundles/<name>-<digest8>/     unpacked; its sweep.yaml is the config, its code/plugins the own plug-ins
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import kdscale
from kdscale.config.load import Sweep, load
from kdscale.errors import ConfigError
from kdscale.jobs.launch_record import packages, torch_cuda
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan
from kdscale.report.archive import unpack
from kdscale.report.bundle import SCHEMA
from kdscale.report.rating import rated
from kdscale.report.records import SweepRecord
from kdscale.report.results import collect

__all__ = ["Bundle", "bundle_of"]

NUMERIC = ("torch", "numpy", "numba", "pillow", "torchvision", "timm", "ffcv", "deepspeed")
"""Packages that decide numbers; of the others it is said how many differ."""
MOST_LINES = 20


def bundle_of(config: str, root: Root) -> Bundle | None:
    """What `report.py --bundle` made, unpacked, where the config is such a file. Raises: ConfigError."""
    return Bundle.open(config, root) if config.endswith(".zip") else None


class Bundle:
    """An unpacked bundle.

    Args:
        path: of the zip file, for messages.
        folder: where it was unpacked to.

    Raises:
        ConfigError: it was made by a newer kdscale, or is no bundle.
    """

    def __init__(self, path: str, folder: Path) -> None:
        self.path, self.folder = path, folder
        self._weights = re.escape(str(folder / "weights"))
        self._document = self._read("bundle.json")
        if not isinstance(self._document, dict) or not isinstance(self._document.get("schema"), int):
            raise ConfigError(f"{path}: holds no bundle.json that says its schema: not a bundle of kdscale's")
        if self._document["schema"] > SCHEMA:
            raise ConfigError(
                f"{path}: is a bundle of schema {self._document['schema']}, made by kdscale "
                f"{self._document.get('kdscale')}; this is kdscale {kdscale.__version__}, which reads up to {SCHEMA}: "
                "update kdscale"
            )

    @classmethod
    def open(cls, path: str, root: Root) -> Bundle:
        """Check a bundle and unpack it under a run root, unless it lies there. Raises: ConfigError."""
        file = Path(path).expanduser()
        if not file.is_file():
            raise ConfigError(f"{path}: no such file")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        folder = root.path / "bundles" / f"{file.stem}-{digest[:8]}"
        if not folder.is_dir():
            unpack(file, folder)
        return cls(path, folder)

    def load(self, overrides: Sequence[str]) -> Sweep:
        """The bundle's sweep, without this machine's ~/.config/kdscale.yaml, of which the sweep knew nothing.

        Raises:
            ConfigError: it does not fit this kdscale, or imported weights are to be named.
        """
        try:
            return load(self.folder / "sweep.yaml", overrides, user_config=self.folder / "no-defaults.yaml")
        except ConfigError as error:
            found = re.search(rf"stages\.([^:]+)\.student\.weights: no such file: ({self._weights}.*)", str(error))
            if found is None:
                raise
            raise ConfigError(
                f"{self.path}: holds no imported weights: say stages.{found[1]}.student.weights=FILE, or copy "
                f"it to {found[2]}{self._hash_of(found[1])}"
            ) from error

    def tell_plugins(self, console: Console) -> None:
        """Say whose code besides kdscale's runs here, before it does."""
        own = sorted(str(p.relative_to(self.folder / "code/plugins")) for p in self.folder.glob("code/plugins/**/*.py"))
        if own:
            some = ", ".join(own[:5]) + (" ..." if len(own) > 5 else "")
            console.print(f"bundle: its plug-ins run here: {some}", markup=False, highlight=False, soft_wrap=True)

    def tell_differences(self, plan: Plan, console: Console) -> None:
        """Say where versions, code, data and digests are not those of the bundle, one a line."""
        lines = [*self._versions(), *self._code(), *self._stages(plan)]
        for line in lines or ["versions, code and data are those of the bundle"]:
            console.print(f"bundle: {line}", markup=False, highlight=False, soft_wrap=True)

    def tell_results(self, sweep_folder: Path, console: Console) -> None:
        """Say how results compare with those in the bundle, one finished stage a line."""
        weights = {d: _last(stage.state) for d, stage in SweepRecord(sweep_folder).stages.items()}
        lines = list(dict.fromkeys(self._compared(collect(sweep_folder), weights)))
        more = [f"and {len(lines) - MOST_LINES} more, in results.json of both"] if len(lines) > MOST_LINES else []
        for line in [*lines[:MOST_LINES], *more]:
            console.print(f"bundle: {line}", markup=False, highlight=False, soft_wrap=True)

    # ------------------------------------------------------------------ what differs

    def _versions(self) -> Iterator[str]:
        software = self._read("software.json") or {}
        here, there = packages(), software.get("packages") or {}
        own = {"kdscale": kdscale.__version__, "python": platform.python_version(), "cuda": torch_cuda()}
        pairs = [(name, software.get(name), version) for name, version in own.items()]
        pairs += [(name, there.get(name), here.get(name)) for name in NUMERIC]
        yield from (f"{name} {a or 'none'} in the bundle, {b or 'none'} here" for name, a, b in pairs if a != b)
        others = (there.keys() | here.keys()) - {*NUMERIC, "kdscale"}
        count = sum(there.get(name) != here.get(name) for name in others)
        if count:
            yield f"{count} other packages differ (versions.txt in {self.folder})"

    def _code(self) -> Iterator[str]:
        package = Path(kdscale.__file__).parent
        there = {p.relative_to(self.folder / "code/kdscale"): p for p in (self.folder / "code/kdscale").rglob("*.py")}
        here = {p.relative_to(package): p for p in package.rglob("*.py")}
        both = sorted(there.keys() | here.keys())
        names = [str(n) for n in both if _bytes(there.get(n)) != _bytes(here.get(n))]
        if names:
            some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            yield f"kdscale's code differs in {len(names)} files ({some}); the one here runs"

    def _stages(self, plan: Plan) -> Iterator[str]:
        known: Mapping[str, Any] = self._document["stages"]
        data = {facts["data"] for facts in known.values() if facts.get("data")}
        found = {_fingerprint(stage.definition) for stage in plan.stages.values()} - {None}
        for fingerprint in sorted(map(str, found - data)):
            yield f"the data's fingerprint is {fingerprint[:12]} here, not among the bundle's"
        trained = [stage for stage in plan.stages.values() if stage.kind == "train"]
        other = sorted({stage.name for stage in trained if stage.digest not in known})
        if other:
            yield f"{len(other)} of {len(trained)} stages are not the bundle's ({', '.join(other[:5])})"

    def _hash_of(self, name: str) -> str:
        stages = self._document["stages"].values()
        found = {s["imported"] for s in stages if s["name"] == name and s.get("imported")}
        return f" (its tensors' hash: {', '.join(sorted(found))})" if found else ""

    # ------------------------------------------------------------------ what came out

    def _compared(self, rows: Sequence[Mapping[str, Any]], weights: Mapping[str, str | None]) -> Iterator[str]:
        theirs = {_key(row): row for row in self._read("results.json") or []}
        for row in rows:
            before = theirs.get(_key(row)) or {}
            now, then = rated(row), rated(before)
            if now is not None and then is not None:
                same = "the same" if then[1] == now[1] else f"{100 * (now[1] - then[1]):+.2f} points"
                known = _last(self._document["stages"].get(before["digest"], {}))
                same += ", with equal weights" if known and known == weights.get(row["digest"]) else ""
                figures = f"{100 * then[1]:.2f} in the bundle, {100 * now[1]:.2f} here"
                yield f"{row['extra']['name']}: {now[0]} {figures}: {same}"

    def _read(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise ConfigError(f"{self.path}: {name} is no JSON ({error}): not a bundle of kdscale's") from error


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row["trial"], row["stage"]], sort_keys=True)


def _last(state: Mapping[str, Any]) -> str | None:
    """Hash of the last weights."""
    return (state.get("weights") or {}).get("last")


def _fingerprint(definition: Mapping[str, Any]) -> str | None:
    data = definition.get("data")
    found = data.get("fingerprint") if isinstance(data, dict) else None
    return str(found) if found else None


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
