"""`--prepare`: on the login node, everything of a sweep that needs a network, and nothing heavy.

    data      fetched and checked          weights   found, with their hashes
    tracking  its runs made                nodes     a job of a minute looks whether they see all of it

Nothing is trained, and nothing but the probe is submitted. The same command again does again only what is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from kdscale import plugins
from kdscale.config.schema import DataConfig
from kdscale.data.sources import PublishedFiles
from kdscale.doctor.findings import Finding
from kdscale.errors import SubmissionError
from kdscale.jobs.slurm.probe import Probe, Sight
from kdscale.jobs.slurm.profile import Profile
from kdscale.jobs.slurm.snapshot import take_snapshot
from kdscale.jobs.wording import size
from kdscale.pipeline.artifacts import Root
from kdscale.pipeline.planned import Plan, PlannedStage

__all__ = ["Preparation", "probe_nodes", "to_fetch"]

SOMEWHERE = "https://pypi.org"
"""Asked by the probe, to tell whether nodes have internet, where no data set of the sweep has an address."""


@dataclass
class Preparation:
    """What one `--prepare` does and says."""

    plan: Plan
    root: Root
    folder: Path
    """The sweep's."""
    console: Console
    lacking: list[str] = field(default_factory=list)
    waits: bool = False
    """Whether a probe was left in the queue."""

    def run(self, profile: Profile | None, *, detach: bool) -> bool:
        """Do it all; returns whether nothing is lacking."""
        files = [*self._data(), *self._weights()]
        self._tracking()
        if profile is not None:
            self._nodes(profile, files, detach=detach)
        if self.lacking:
            self._say("", f"NOT READY: {', '.join(dict.fromkeys(self.lacking))}")
        else:
            again = [word for word in shlex.split(self.plan.command) if word not in ("--prepare", "--detach")]
            self._say("then", shlex.join([*again, *(["--prepare"] if self.waits else [])]))
        return not self.lacking

    # ------------------------------------------------------------------ what stages read

    def _data(self) -> Iterator[dict[str, Any]]:
        for stage in _conversions(self.plan):
            name = stage.definition["name"]
            if stage.reuse.done:
                self._say("data", f"{name}: converted already, {stage.folder}")
                yield _entry("data", name, _folder_of(self.root, stage) / "store" / "manifest.json")
                continue
            paths = _paths_of(_dataset(stage))
            known = sum(path.stat().st_size for path in paths if path.is_file())
            where = ", ".join(sorted({str(path.parent if path.is_file() else path) for path in paths}))
            how_much = f"{len(paths)} files, {size(known)}, " if known else ""
            self._say("data", f"{name}: {how_much}{where}" if paths else f"{name}: made up as it is read")
            yield from (_entry("data", name, path) for path in paths)

    def _weights(self) -> Iterator[dict[str, Any]]:
        """Files that the config names, and finished stages that others take from."""
        named = {
            str(student["weights"]): str(student.get("weights_hash", ""))
            for student in (stage.definition["spec"]["student"] for stage in self.plan.todo if stage.kind == "train")
            if student.get("weights")
        }
        for file, digest in named.items():
            self._say("weights", f"{file} ({digest[:12]})")
            yield _entry("weights", Path(file).name, Path(file))
        for stage in self.plan.stages.values():
            if stage.reuse.done and stage.kind == "train":
                found = _folder_of(self.root, stage)
                self._say("weights", f"{stage.name}: trained already, {found}")
                yield _entry("weights", stage.name, found / "student.safetensors")

    # ------------------------------------------------------------------ tracking

    def _tracking(self) -> None:
        """The experiment and the sweep's runs; whatever is there already stays as it is."""
        from kdscale.trackers.destination import destination
        from kdscale.trackers.shipper import Shipper

        said = self.plan.tracking
        to = destination(self.root.path, said["uri"], said["experiment"])
        if to is None or said["ship"] == "never":
            self._say("tracking", "off" if to is None else "tracking.ship: never")
            return
        report = Shipper(self.root.path, to).ship(self.folder, open_=True)
        if report.problems or report.busy:
            self._lacks("tracking", f"{to}: {(report.problems or ['another process is shipping there'])[0]}")
            self._say("", "training does not need it: metrics are kept, and `launch/track.py sync` brings them")
        else:
            self._say("tracking", f"{to}: experiment {to.experiment}, {report.runs} runs there")

    # ------------------------------------------------------------------ nodes

    def _nodes(self, profile: Profile, files: list[dict[str, Any]], *, detach: bool) -> None:
        wanted = _question(self.plan, self.root, files)
        code = take_snapshot(self.root.path, self.plan)
        kinds = _kinds_of_nodes(self.plan, profile)
        probes = [Probe(self.root.path, profile, code, partition, gpus, wanted) for partition, gpus in kinds]
        for sight in probe_nodes(probes, lambda text: self._say("nodes", text), wait=not detach):
            self._tell(sight)
        self.waits = detach

    def _tell(self, sight: Sight) -> None:
        where = f"{sight.node}: " if sight.node else ""
        well = [finding.text for finding in sight.findings if finding.state == "ok"]
        if well:
            self._say("nodes", f"{where}{'; '.join(well)}{self._shipping(sight)}")
        for finding in sight.findings:
            if finding.state != "ok":
                text = f"{where}{finding.text}"
                self._lacks("nodes", text) if finding.stops else self._say("nodes", text)
                if finding.mend:
                    self._say("", finding.mend)

    def _shipping(self, sight: Sight) -> str:
        """Who will bring metrics to the server."""
        found = [finding.details["reachable"] for finding in sight.findings if finding.name == "tracking"]
        if not found or self.plan.tracking["ship"] != "auto":
            return ""
        return " -> the jobs ship" if found[0] else " -> the login node ships"

    def _lacks(self, what: str, text: str) -> None:
        self.lacking.append(what)
        self._say(what, text)

    def _say(self, what: str, text: str) -> None:
        self.console.print(f" {what:9} {text}", markup=False, highlight=False, soft_wrap=True)


def probe_nodes(probes: Sequence[Probe], say: Callable[[str], None], *, wait: bool) -> Iterator[Sight]:
    """Submit probes, and yield what each has seen unless they are only to be left in the queue.

    Raises:
        SubmissionError: the scheduler does not answer while they wait.
    """
    submitted = []
    for probe in probes:
        try:
            new = probe.submit()
        except SubmissionError as error:
            yield Sight("", "", [Finding("node", "probe", "broken", str(error), needed=True)])
            continue
        where = f" to {probe.partition}" if probe.partition else ""
        say(f"probe job {probe.job} {'submitted' if new else 'is queued'}{where}")
        submitted.append(probe)
    yield from (probe.wait(say) for probe in submitted if wait)


def to_fetch(plan: Plan) -> list[str]:
    """What `--prepare`, or a launch, would download; touches no network."""
    found = []
    for stage in _conversions(plan):
        files = getattr(_dataset(stage), "files", None)
        if not stage.reuse.done and isinstance(files, PublishedFiles) and not files.is_here():
            publication = files.publication
            names = ", ".join(package.file for package in publication.packages)
            found.append(f"to fetch: {publication.name} from {publication.urls[0]} ({names}) -> {files.target()}")
    return found


# --------------------------------------------------------------------------- what a sweep reads


def _conversions(plan: Plan) -> list[PlannedStage]:
    return [stage for stage in plan.stages.values() if stage.kind == "convert"]


def _dataset(stage: PlannedStage) -> Any:
    """The data set of a conversion; it downloads nothing."""
    data = DataConfig.model_validate(stage.definition["spec"].get("data", {}))
    return plugins.load("datasets", data.name)(data, download=False)


def _paths_of(dataset: Any) -> list[Path]:
    files = getattr(dataset, "files", None)
    if isinstance(files, PublishedFiles):
        return sorted(set(files.locate().values()))
    root = getattr(dataset, "root", None)
    return [root] if isinstance(root, Path) else []


def _folder_of(root: Root, stage: PlannedStage) -> Path:
    folder = root.stage(stage.digest)
    assert folder is not None
    return folder.path


def _entry(kind: str, name: str, path: Path) -> dict[str, Any]:
    return {
        "kind": kind, "name": name, "path": str(path.absolute()),
        "bytes": path.stat().st_size if path.is_file() else None,
    }  # fmt: skip


def _question(plan: Plan, root: Root, files: list[dict[str, Any]]) -> dict[str, Any]:
    """What the probe looks for."""
    from kdscale.trackers.destination import destination

    to = destination(root.path, plan.tracking["uri"], plan.tracking["experiment"])
    served = to.uri if to is not None and to.database is None else None
    staged = {stage.definition["spec"].get("data", {}).get("stage_to") for stage in plan.todo}
    sets = [getattr(_dataset(stage), "files", None) for stage in _conversions(plan)]
    urls = [url for files_ in sets if isinstance(files_, PublishedFiles) for url in files_.publication.urls]
    return {
        "schema": 1, "root": str(root.path), "files": files, "tracking": served, "ship": plan.tracking["ship"],
        "internet": urls[0] if urls else SOMEWHERE, "stage_to": sorted(staged - {None}),
        "bytes": max([stage.cost.bytes for stage in _conversions(plan)], default=0),
    }  # fmt: skip


def _kinds_of_nodes(plan: Plan, profile: Profile) -> list[tuple[str | None, int]]:
    """Partition and GPUs of a process: each kind of job that the sweep asks for."""
    asked = [stage.definition["spec"].get("resources", {}) for stage in plan.todo or plan.stages.values()]
    kinds = {(some.get("partition") or profile.partition, int(some.get("gpus_per_process", 0) > 0)) for some in asked}
    return sorted(kinds, key=lambda kind: (kind[0] or "", kind[1]))
