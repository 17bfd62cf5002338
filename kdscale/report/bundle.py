"""`report.py SWEEP --bundle FILE`: one file from which the sweep can be understood, checked and run again.

    bundle.json  README.txt  SHA256SUMS  sweep.yaml  fragments/  files/     what to run, and what it must come to
    code/        kdscale and your own plug-ins as they were when the sweep was launched, and dirty.diff
    versions.txt software.json  plan.json  results.json  report.html        what it ran with, and what came out
    stages/NAME-DIGEST/         stage.yaml  state.json  metrics.jsonl  logs/

Weights, data and caches stay where they are: bundle.json has their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdscale import __version__, atomic
from kdscale.errors import ConfigError
from kdscale.report.archive import SUMS, pack, read_archive
from kdscale.report.bundled_config import PLUGINS, BundledConfig, bundled_config
from kdscale.report.records import StageRecord, SweepRecord
from kdscale.report.results import collect
from kdscale.report.scrubbing import Scrubber

__all__ = ["SCHEMA", "write_bundle"]

SCHEMA = 1
LOG_BYTES = 256 << 10
"""Of a log, its end."""
LOGS_BYTES = 32 << 20
METRICS_BYTES = 16 << 20
_OF_A_STAGE = ("stage.yaml", "state.json", "metrics.jsonl", "step0.json", "exports.json")


def write_bundle(sweep_folder: Path, target: Path) -> list[str]:
    """Write a sweep's bundle: the same bytes for the same sweep.

    Returns:
        What was left out, and what a rerun needs, one a line.

    Raises:
        ConfigError: the sweep was launched by a kdscale that kept neither code nor versions, or a file is gone.
    """
    return _Bundle(SweepRecord(sweep_folder)).write(target)


class _Bundle:
    def __init__(self, sweep: SweepRecord) -> None:
        self._sweep = sweep
        self._left_out: list[str] = ["weights, data and caches: bundle.json has their hashes"]
        self._scrub = Scrubber(_places(sweep), _hosts(sweep))
        self._files: dict[str, bytes] = {}

    def write(self, target: Path) -> list[str]:
        config = bundled_config(self._sweep.path / "sweep.yaml", _precision(self._sweep))
        self._code()
        self._software()
        self._results()
        self._left_out += [f"{name}: no folder of plugins.path has it; install it" for name in self._not_here()]
        for stage in self._sweep.stages.values():
            self._stage(stage)
        self._logs()
        self._files |= {name: self._config(data) for name, data in config.files.items()}
        self._files["sweep.yaml"] = self._config(config.text.encode())
        self._put("bundle.json", atomic.as_json(self._document(config)))
        self._put("README.txt", _readme(self._sweep, config.needs, self._left_out))
        atomic.write_bytes(target, pack(self._files))
        return [*(f"left out: {one}" for one in self._left_out), *(f"needs {one}" for one in config.needs)]

    # ------------------------------------------------------------------ parts

    def _code(self) -> None:
        """As it is: a plug-in counts by its bytes."""
        archive = self._sweep.path / "code.zip"
        if not archive.is_file():
            raise ConfigError(
                f"{self._sweep.path} keeps no code.zip: it was launched by an older kdscale. Give the sweep's command "
                "again (what is done is reused), then bundle"
            )
        for name, data in read_archive(archive).items():
            self._files[f"code/{name}"] = self._text(data) if name == "dirty.diff" else data

    def _not_here(self) -> list[str]:
        """Packages that the sweep may import and that the copy of its code does not hold."""
        specs = (stage.definition.get("spec") or {} for stage in self._sweep.stages.values())
        wanted = {name for spec in specs for name in (spec.get("plugins") or {}).get("allow") or []}
        held = {name.removeprefix(f"{PLUGINS}/").partition("/")[0].removesuffix(".py") for name in self._files}
        return sorted(wanted - held)

    def _software(self) -> None:
        found = atomic.read_json(self._sweep.path / "software.json") or {}
        self._put("software.json", atomic.as_json(found))
        packages: Mapping[str, str] = found.get("packages") or {}
        self._put("versions.txt", "".join(f"{name}=={version}\n" for name, version in packages.items()))

    def _results(self) -> None:
        plan = {key: value for key, value in self._sweep.plan.items() if key != "tracking"}
        self._put("plan.json", atomic.as_json(plan))
        self._put("results.json", atomic.as_json(collect(self._sweep.path)))
        page = self._sweep.path / "report.html"
        if page.is_file():
            self._files["report.html"] = self._text(page.read_bytes())

    def _stage(self, stage: StageRecord) -> None:
        for name in _OF_A_STAGE if stage.folder else ():
            assert stage.folder is not None
            path = stage.folder / name
            if not path.is_file():
                continue
            if path.stat().st_size > METRICS_BYTES:
                self._left_out.append(f"{stage.folder.name}/{name}: more than {METRICS_BYTES >> 20} MiB")
                continue
            self._files[f"stages/{stage.folder.name}/{name}"] = self._text(path.read_bytes())

    def _logs(self) -> None:
        left = LOGS_BYTES
        for stage in self._sweep.stages.values():
            for path in sorted((stage.folder / "logs").rglob("*")) if stage.folder else ():
                if not path.is_file() or path.is_symlink():
                    continue
                assert stage.folder is not None
                name = f"stages/{stage.folder.name}/{path.relative_to(stage.folder)}"
                data = path.read_bytes()[-min(LOG_BYTES, left) :] if left else b""
                if len(data) < path.stat().st_size:
                    self._left_out.append(f"{name}: all but its last {len(data) >> 10} KiB")
                left -= len(data)
                self._files[name] = self._text(data)

    def _document(self, config: BundledConfig) -> dict[str, Any]:
        return {
            "schema": SCHEMA, "kdscale": __version__, "name": self._sweep.name, "sweep": self._sweep.path.name,
            "digest": self._sweep.plan["digest"], "trials": self._sweep.plan["trials"],
            "stages": {stage.digest: _facts(stage) for stage in self._sweep.stages.values()},
            "needs": config.needs, "left_out": self._left_out,
        }  # fmt: skip

    def _put(self, name: str, text: str) -> None:
        self._files[name] = self._scrub.text(text).encode()

    def _text(self, data: bytes) -> bytes:
        return self._scrub.text(data.decode(errors="replace")).encode()

    def _config(self, data: bytes) -> bytes:
        return self._scrub.config(data.decode(errors="replace")).encode()


def _facts(stage: StageRecord) -> dict[str, Any]:
    """What another machine compares: whatever decides a stage's numbers, and what came out."""
    definition = stage.definition
    last = (stage.attempts or [{}])[-1]
    student = (definition.get("spec") or {}).get("student") or {}
    facts = {
        "name": stage.name, "kind": stage.kind, "state": stage.status,
        "data": (definition.get("data") or {}).get("fingerprint") or definition.get("fingerprint"),
        "imported": student.get("weights_hash"), "weights": stage.state.get("weights") or {},
        **{key: last.get(key) for key in ("torch", "python", "kdscale", "device", "precision", "world", "loader")},
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value is not None}


def _precision(sweep: SweepRecord) -> str | None:
    """What `auto` came to; None where stages differ, or nothing trained."""
    specs = [stage.definition.get("spec") or {} for stage in sweep.trained]
    found = {(spec.get("train") or {}).get("precision", "auto") for spec in specs}
    return str(found.pop()) if len(found) == 1 else None


def _places(sweep: SweepRecord) -> dict[Path, str]:
    """Folders of this machine, and what stands for them."""
    found = {Path(__file__).resolve().parents[2]: "KDSCALE", sweep.path.parent.parent.absolute(): "RUNS"}
    config = Path(sweep.plan.get("config_path") or "")
    if config.is_absolute():
        found[config.parent] = "CONFIGS"
    for stage in sweep.stages.values():
        if stage.folder is not None:
            found[stage.folder.parent.parent.absolute()] = "RUNS"
        spec = stage.definition.get("spec") or {}
        found |= dict(_places_in(spec))
    return found


def _places_in(spec: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    root = (spec.get("data") or {}).get("root")
    weights = (spec.get("student") or {}).get("weights")
    yield from ((Path(folder), PLUGINS) for folder in (spec.get("plugins") or {}).get("path") or [])
    if root:
        yield Path(root), "DATA"
    if weights:
        yield Path(weights).parent, "WEIGHTS"


def _hosts(sweep: SweepRecord) -> set[str]:
    return {str(a["host"]) for stage in sweep.stages.values() for a in stage.attempts if a.get("host")}


def _readme(sweep: SweepRecord, needs: list[str], left_out: list[str]) -> str:
    needed = "".join(f"  {one}\n" for one in needs) or "  nothing beside kdscale and the data set\n"
    return (
        f"""\
The sweep {sweep.path.name} of kdscale {__version__}, to be understood, checked and run again.

Run it again:
  python launch/sweep.py FILE.zip --dry-run     what it would do, and what differs here
  python launch/sweep.py FILE.zip               do it, and compare the results with those in here
It needs (KEY=VALUE after the file's name):
{needed}It runs the plug-ins in code/plugins, where there are any: run only what comes from somebody whom you trust.

In it:
  sweep.yaml, fragments/, files/    the config with everything that it extends and uses; paths are relative to it
  bundle.json                       digests of stages, hashes of data and weights
  code/                             kdscale and your own plug-ins as they were at the last launch; dirty.diff: what was
                                    not committed. It is the kdscale that you call which runs, not this one
  software.json, versions.txt       Python, packages, CUDA and driver where it was launched
  plan.json, results.json, report.html, stages/      what came out; figures, metrics and logs of each stage
  {SUMS}                        sha256sum -c {SUMS}

Left out:
"""
        + "".join(f"  {one}\n" for one in left_out)
        + """
Folders of the machine are written as ~, RUNS, DATA, WEIGHTS, CONFIGS and KDSCALE, its name as HOST, its user as USER;
what its environment called a token, a password or the like as REMOVED.
"""
    )
