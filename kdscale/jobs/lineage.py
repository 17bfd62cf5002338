"""Who made a stage, from what, and who needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kdscale.config.explain import Difference, differences
from kdscale.errors import StageError
from kdscale.jobs.wording import ago, clock
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder
from kdscale.pipeline.names import names_in, sweep_name
from kdscale.report.rating import said

__all__ = ["Family", "Use", "live_sweeps", "uses", "why"]

OUTSIDE = frozenset({"name", "engine", "resources", "tracking", "plugins", "protocol", "export", "expect"})
"""Parts of a definition that do not decide what the stage is."""
LISTED = 6


class Use(NamedTuple):
    """A sweep that has a stage in its plan."""

    sweep: SweepFolder
    name: str
    """What the stage is called there, to be pasted."""
    trials: int
    entry: Mapping[str, Any]


class Family:
    """Parents and children among all stages of a root."""

    def __init__(self, root: Root) -> None:
        self.stages = {folder.digest12: folder for folder in root.stages()}
        self._parents = {digest: _parents(folder) for digest, folder in self.stages.items()}

    def ancestors(self, digests: Iterable[str]) -> set[str]:
        """These stages and all they were made from, directly or not; first 12 digits of digests."""
        found: set[str] = set()
        open_ = [digest[:12] for digest in digests]
        while open_:
            digest = open_.pop()
            if digest not in found:
                found.add(digest)
                open_ += self._parents.get(digest, ())
        return found

    def parents(self, digest: str) -> list[StageFolder]:
        """What a stage was made from."""
        return [self.stages[p] for p in sorted(self._parents.get(digest[:12], ())) if p in self.stages]

    def descendants(self, digest: str) -> list[StageFolder]:
        """What was made from a stage, directly or not."""
        own = digest[:12]
        return [f for d, f in self.stages.items() if d != own and own in self.ancestors([d])]


def uses(stage: StageFolder, root: Root) -> list[Use]:
    """The sweeps that have a stage in their plan, the newest first."""
    found = []
    for sweep in root.sweeps():
        plan = sweep.plan()
        digest = next((d for d in plan["stages"] if d[:12] == stage.digest12), None)
        if digest is not None:
            trials = sum(digest in trial["stages"].values() for trial in plan["trials"])
            name = names_in(plan, sweep_name(sweep))[digest]
            found.append(Use(sweep, name, trials, plan["stages"][digest]))
    return found


def live_sweeps(root: Root) -> list[SweepFolder]:
    """Sweeps with a live launcher, or of which a stage is being run."""
    claimed = {folder.digest12 for folder in root.stages() if folder.writable and folder.claimant()}
    return [s for s in root.sweeps() if s.launcher() or claimed & {digest[:12] for digest in s.plan()["stages"]}]


def why(found: StageFolder | SweepFolder, root: Root) -> Iterator[tuple[str, str]]:
    """Where a stage comes from and who uses it; of a sweep, why each stage was made or reused.

    Yields:
        (label, what is to say) in the order of a screen.
    """
    yield from _why_sweep(found) if isinstance(found, SweepFolder) else _why_stage(found, root)


def _why_sweep(sweep: SweepFolder) -> Iterator[tuple[str, str]]:
    plan = sweep.plan()
    names = names_in(plan, sweep_name(sweep))
    yield "planned", f"{clock(plan['created'])}   {plan['command']}"
    for digest, entry in plan["stages"].items():
        yield ("reused" if entry["reused"] else "made"), f"{names[digest]}   {entry.get('because', '')}".rstrip()


def _why_stage(stage: StageFolder, root: Root) -> Iterator[tuple[str, str]]:
    state, family, users = stage.state(), Family(root), uses(stage, root)
    found = said(state.get("results") or {})
    figures = f"   {found}" if found else ""
    yield "stage", f"{stage.path.name}   {state['state']}{figures}   {state['reason']}".rstrip()
    yield "made by", _made_by(stage, state)
    yield "made from", _listed(family.parents(stage.digest12)) or "nothing"
    for use in users:
        verdict = "reused" if use.entry["reused"] else "made"
        because = f": {use.entry['because']}" if use.entry.get("because") else ""
        of = f"{use.trials} of {len(use.sweep.plan()['trials'])} trials" if use.trials else "serves all trials"
        yield "in a sweep", f"{use.name}   {of}, {verdict}{because}"
    if not users:
        yield "in a sweep", "none that is left"
    yield "needed by", _listed(family.descendants(stage.digest12)) or "nothing"
    pin = stage.pinned()
    if pin:
        yield "pinned", f"by {pin['by']}, {ago(pin['when'])}: {pin['reason']}"
    yield from _nearest(stage, family)


def _made_by(stage: StageFolder, state: Mapping[str, Any]) -> str:
    attempts = state["attempts"]
    sweep = stage.definition().get("sweep", "") if (stage.path / "stage.yaml").exists() else ""
    if not attempts:
        return f"{sweep}, not begun" if sweep else "not begun"
    hosts = ", ".join(dict.fromkeys(str(a["host"]) for a in attempts if a.get("host")))
    count = f"{len(attempts)} attempt{'s' * (len(attempts) > 1)}"
    return "   ".join(part for part in (str(sweep), clock(attempts[0]["started"]), count, hosts) if part)


def _nearest(stage: StageFolder, family: Family) -> Iterator[tuple[str, str]]:
    """The stage of the same name that differs in the fewest keys: what reuse was a hair away from."""
    own = _identity(stage)
    others = [f for f in family.stages.values() if f.name == stage.name and f.digest12 != stage.digest12]
    judged = [(differences(_identity(other), own), other) for other in others]
    if own and judged:
        found, other = min(judged, key=lambda one: len(one[0]))
        changes = ", ".join(_change(one) for one in found[:LISTED]) or "its parents, data or a plug-in"
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        yield "differs", f"from {other.path.name} ({other.state()['state']}) in {changes}{more}"


def _change(one: Difference) -> str:
    key, was, now = one
    return f"{key} {'default' if was is None else was} -> {'default' if now is None else now}"


def _identity(stage: StageFolder) -> dict[str, Any]:
    try:
        definition = stage.definition()
    except StageError:
        return {}
    return {key: value for key, value in definition.get("spec", {}).items() if key not in OUTSIDE}


def _parents(folder: StageFolder) -> set[str]:
    """First 12 digits of what a stage was made from, its converted data too."""
    if not (folder.path / "stage.yaml").exists():
        return set()
    definition = folder.definition()
    digests = [parent["digest"] for parent in (definition.get("parents") or {}).values()]
    read = [definition.get("data") or {}, *(definition.get("sets") or {}).values()]
    return {str(digest)[:12] for digest in (*digests, *(data["store"] for data in read if data.get("store")))}


def _listed(folders: list[StageFolder]) -> str:
    names = [folder.path.name for folder in folders]
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
