"""One grammar to name a thing, on every command line and screen.

    3f21ab                          a stage by the beginning of its digest; teacher-3f21ab; teacher, if there is one
    birds                           a sweep by its name, by birds-9c11 or by the beginning of its digest
    birds:student                   a stage of a sweep, where all trials share it
    birds:teacher-cache-3f21ab      one of several of that name that no axis tells apart
    birds:student[crd,mine96,s1]    of the trials with these axis values, in any order; s1 is seed 1;
                                    lr=0.1 where a value alone could be of two axes
    latest, latest:student[s1]      the sweep that was planned last
    runs/stages/teacher-3f21ab45cd67, or any file in it

A name means one thing or is an error that lists what it could mean.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdscale.errors import ConfigError
from kdscale.pipeline.artifacts import Root, StageFolder, SweepFolder

__all__ = ["axis_value", "digest_in", "digests_in", "name_of", "names_in", "resolve", "sweep_name"]

Plan = Mapping[str, Any]
Axes = Mapping[str, str]

LATEST = "latest"
SHOWN = 10
_STAGE_PART = re.compile(r"(?P<stage>[^\[\]]+)(\[(?P<values>.*)\])?")
_BETWEEN_VALUES = re.compile(r",(?![^\[(]*[\])])")
"""A comma outside brackets: `[1,2]` is one value."""


def resolve(text: str, root: Root) -> StageFolder | SweepFolder:
    """Find what a name means.

    Raises:
        ConfigError: it means nothing, or several things; lists them.
    """
    text = text.strip()
    if "/" in text or text.startswith((".", "~")):
        return _by_path(Path(text).expanduser(), root)
    head, colon, rest = text.partition(":")
    if colon:
        return _stage_of(_sweep(head, root), rest, root)
    if text == LATEST:
        return _sweep(text, root)
    found: list[SweepFolder | StageFolder] = [*_matching_sweeps(text, root), *_matching_stages(text, root)]
    if len(found) != 1:
        raise _not_one(text, found, root)
    return found[0]


def name_of(sweep: SweepFolder, stage: str, axes: Axes) -> str:
    """The shortest name of a trial's stage that can be pasted anywhere.

    Args:
        sweep: the sweep of the trial.
        stage: the stage's name in the config.
        axes: all axis values of the trial.
    """
    plan = sweep.plan()
    digest = next(t["stages"][stage] for t in plan["trials"] if dict(t["axes"]) == dict(axes))
    return names_in(plan, sweep_name(sweep))[digest]


def sweep_name(sweep: SweepFolder) -> str:
    """A sweep's name, with its digest only where another sweep is called the same."""
    same = [other for other in sweep.root.sweeps() if other.name == sweep.name]
    return sweep.name if len(same) <= 1 and sweep.name != LATEST else sweep.path.name


def names_in(plan: Plan, sweep: str) -> dict[str, str]:
    """A pasteable name of every stage of a plan, by digest; `sweep` is how the sweep itself is called."""
    index = _Index(plan)
    return {digest: f"{sweep}:{index.name(digest)}" for digest in plan["stages"]}


def digest_in(plan: Plan, text: str, sweep: str = "") -> str:
    """The digest of `stage` or `stage[values]` in a plan. Raises: ConfigError."""
    return _Index(plan).find(text, sweep)


def digests_in(plan: Plan, text: str, sweep: str = "") -> list[str]:
    """The digests of all stages that `stage` or `stage[values]` fits; fewer values fit more. Raises: ConfigError."""
    return _Index(plan).find_all(text, sweep)


def axis_value(axis: str, value: str) -> str:
    """An axis value as it stands in names: a seed of 1 is `s1`."""
    return f"s{value}" if axis == "seed" else value


# --------------------------------------------------------------------------- inside one plan


class _Index:
    """Which stages of a plan a name could mean."""

    def __init__(self, plan: Plan) -> None:
        self._planned: Mapping[str, Any] = plan["stages"]
        measuring = _evaluations(plan["stages"])
        own = [dict(trial["stages"]) for trial in plan["trials"]]
        self._trials = [dict(measuring[d] for d in stages.values() if d in measuring) | stages for stages in own]
        self._axes: list[Axes] = [{a: str(v) for a, v in t["axes"].items()} for t in plan["trials"]]
        self._with: dict[str, set[int]] = {}
        """Label -> trials that have it; makes naming a thousand stages a matter of a moment."""
        self._users: dict[str, list[int]] = {}
        self._called: dict[str, list[str]] = {}
        """Name of a stage -> its distinct digests; conversions serve trials, but belong to none."""
        for i, (trial, axes) in enumerate(zip(self._trials, self._axes, strict=True)):
            for axis, value in axes.items():
                self._with.setdefault(axis_value(axis, value), set()).add(i)
            for name, digest in trial.items():
                self._users.setdefault(digest, []).append(i)
                self._called.setdefault(name, []).append(digest)
        for digest, entry in self._planned.items():
            self._called.setdefault(entry["name"], []).append(digest)
        self._called = {name: list(dict.fromkeys(digests)) for name, digests in self._called.items()}
        for digest, entry in self._planned.items():
            if digest not in self._users and len(self._called[entry["name"]]) > 1:  # no axis tells it from its like
                self._called[f"{entry['name']}-{digest[:6]}"] = [digest]

    def find(self, text: str, sweep: str) -> str:
        """The one digest that `stage[values]` means. Raises: ConfigError."""
        found = self.find_all(text, sweep)
        if len(found) > 1:
            raise ConfigError(f"{sweep}:{text} could be any of {self._listed(found, sweep)}")
        return found[0]

    def find_all(self, text: str, sweep: str) -> list[str]:
        """All digests that `stage[values]` fits, one at least. Raises: ConfigError."""
        parts = _STAGE_PART.fullmatch(text)
        if parts is None:
            raise ConfigError(f"{sweep}:{text}: after the colon comes STAGE or STAGE[VALUE,VALUE]")
        stage, values = parts["stage"], _split(parts["values"] or "")
        found = self._meant(stage, values)
        self._demand_stage(stage, sweep)
        if not found:
            raise ConfigError(f"{sweep}:{text}: {self._lacking(values)}")
        return found

    def _lacking(self, values: Sequence[str]) -> str:
        """Why no trial has these values."""
        known = sorted(self._with)
        unknown = [v for v in values if not any(_fits([v], axes) for axes in self._axes)]
        near = difflib.get_close_matches(unknown[0], known, 1) if unknown else []
        what = f"no trial has {unknown[0]!r}" if unknown else "no trial has all these values"
        return what + (f"; did you mean {near[0]}?" if near else f"; the values are {', '.join(known) or 'none'}")

    def name(self, digest: str) -> str:
        """The shortest name that finds this digest again."""
        stage = self._planned[digest]["name"]
        users = self._users.get(digest)
        if self._meant(stage, []) == [digest]:
            return str(stage)
        if not users:
            return f"{stage}-{digest[:6]}"
        axes = self._axes[users[0]]
        decisive = [a for a in axes if len({self._axes[i].get(a) for i in users}) == 1]
        for chosen in (decisive, list(axes)):
            plain = [axis_value(a, axes[a]) for a in chosen]
            for values in (plain, [f"{a}={axes[a]}" for a in chosen]):
                if self._meant(stage, values) == [digest]:
                    return f"{stage}[{','.join(values)}]"
        return f"{stage}[{','.join(f'{a}={v}' for a, v in axes.items())}]"

    def _meant(self, stage: str, values: Sequence[str]) -> list[str]:
        """The distinct digests that a name could mean, in the order of the trials."""
        if not values:
            return self._called.get(stage, [])
        known = [self._with[v] for v in values if v in self._with]
        candidates = sorted(set.intersection(*known)) if len(known) == len(values) else range(len(self._trials))
        trials = [self._trials[i] for i in candidates if _fits(values, self._axes[i])]
        return list(dict.fromkeys(stages[stage] for stages in trials if stage in stages))

    def _demand_stage(self, stage: str, sweep: str) -> None:
        known = sorted(self._called)
        if stage not in known:
            near = difflib.get_close_matches(stage, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"its stages are {', '.join(known)}"
            raise ConfigError(f"{sweep} has no stage {stage!r}; {hint}")

    def _listed(self, digests: Sequence[str], sweep: str) -> str:
        return _listed([f"{sweep}:{self.name(d)}" for d in digests])


def _evaluations(planned: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name and digest of the stages that measure others, by whom they measure."""
    measuring = ((digest, entry) for digest, entry in planned.items() if entry.get("kind") == "evaluate")
    return {entry["parents"][0]["digest"]: (entry["name"], digest) for digest, entry in measuring}


def _fits(values: Sequence[str], axes: Axes) -> bool:
    """Whether a trial has all these values, each of another axis."""
    if not values:
        return True
    left = dict(axes)
    for value in [v for v in values if v.partition("=")[0] in axes]:
        axis, _, wanted = value.partition("=")
        if left.pop(axis, None) not in (wanted, wanted.removeprefix("s") if axis == "seed" else wanted):
            return False
    plain = [v for v in values if v.partition("=")[0] not in axes]
    return not Counter(_of_axes(plain, left)) - Counter(axis_value(a, v) for a, v in left.items())


def _of_axes(values: Iterable[str], axes: Axes) -> list[str]:
    """Values as names write them: a bare 1 may be the seed, if it is no other axis's."""
    names = {axis_value(a, v) for a, v in axes.items()}
    return [v if v in names or axes.get("seed") != v else axis_value("seed", v) for v in values]


def _split(values: str) -> list[str]:
    return [v.strip() for v in _BETWEEN_VALUES.split(values) if v.strip()]


# --------------------------------------------------------------------------- among all runs


def _by_path(path: Path, root: Root) -> StageFolder | SweepFolder:
    """The stage or sweep whose folder this is, or lies in."""
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.parent.name == "stages" and folder.is_dir():
            own = folder.parent.parent.resolve() == root.path.resolve()
            return StageFolder(folder, writable=own)
        if (folder / "plan.json").is_file():
            return SweepFolder(folder)
    raise ConfigError(
        f"{path}: {'is in no stage and no sweep' if path.exists() else 'there is no such file or folder'}"
    )


def _stage_of(sweep: SweepFolder, text: str, root: Root) -> StageFolder:
    digest = digest_in(sweep.plan(), text, sweep_name(sweep))
    folder = root.stage(digest)
    if folder is None:
        raise ConfigError(f"{sweep_name(sweep)}:{text} is planned ({digest[:12]}), but nothing has been made of it yet")
    return folder


def _sweep(text: str, root: Root) -> SweepFolder:
    sweeps = root.sweeps()
    if text == LATEST and sweeps:
        return sweeps[0]
    found = _matching_sweeps(text, root)
    if len(found) != 1:
        raise _not_one(text, found, root)
    return found[0]


def _matching_sweeps(text: str, root: Root) -> list[SweepFolder]:
    def matches(sweep: SweepFolder) -> bool:
        digest = sweep.path.name.rpartition("-")[2]
        return (
            text == sweep.name
            or (sweep.path.name.startswith(text) and text.startswith(f"{sweep.name}-"))
            or _begins(text, digest)
        )

    return [sweep for sweep in root.sweeps() if matches(sweep)]


def _matching_stages(text: str, root: Root) -> list[StageFolder]:
    def matches(stage: StageFolder) -> bool:
        if text == stage.name:
            return True
        prefix = text.removeprefix(f"{stage.name}-")
        if len(prefix) > len(stage.digest12):
            return _begins(prefix, stage.digest)
        return _begins(prefix, stage.digest12)

    return [stage for stage in root.stages() if matches(stage)]


def _begins(text: str, digest: str) -> bool:
    """Whether text is the beginning of a digest, long enough to be meant as one."""
    return len(text) >= 2 and digest.startswith(text.lower())


def _not_one(text: str, found: Sequence[StageFolder | SweepFolder], root: Root) -> ConfigError:
    if found:
        return ConfigError(f"{text!r} could be any of {_listed([f.path.name for f in found])}")
    sweeps = [s.name for s in root.sweeps()]
    known = list(dict.fromkeys([*sweeps, *(s.path.name for s in root.stages())]))
    near = difflib.get_close_matches(text, [*known, *([LATEST] if sweeps else [])], 3)
    if near:
        return ConfigError(f"nothing under {root.path} is called {text!r}; did you mean {_listed(near)}?")
    has = f"its sweeps are {_listed(sweeps)}" if sweeps else "it holds no sweeps (another --runs?)"
    return ConfigError(f"nothing under {root.path} is called {text!r}; {has}")


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
    return ", ".join(unique[:SHOWN]) + more
