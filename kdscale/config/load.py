"""From a file and its overrides to the trials of a sweep, each validated before anything starts.

user's config  <  bases (extends)  <  the file  <  an axis's patch  <  KEY=VALUE
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kdscale.config.arithmetic import evaluated
from kdscale.config.complaints import complain
from kdscale.config.digest import variant_of
from kdscale.config.patches import FLAG, Axis, Point, apply, axes_of, combinations, parse_override
from kdscale.config.reading import Layer, absolute_paths, merged, read_layer
from kdscale.config.schema import Experiment, InitFrom, StageConfig, StageSpec, StudentConfig, TermConfig
from kdscale.errors import ConfigError

__all__ = ["Sweep", "Trial", "load", "parse_reference", "resolve_stages"]

M = TypeVar("M", bound=BaseModel)
_MERGED = ("train", "data", "engine", "resources")
_NOT_BUILT = [
    (re.compile(r"stages\.[^.]+\.teachers\.[^.]+\.cache"), "the teacher cache is not built yet; leave it out"),
    (re.compile(r"(stages\.[^.]+\.)?engine\.name"), "deepspeed is not built yet; use ddp"),
    (re.compile(r"(stages\.)?(chain|dense|grow|rounds)"), "macros are not built yet; write the stages out"),
    (re.compile(r"stages\.[^.]+\.export"), "exports are not built yet; leave it out"),
    (re.compile(r"tracking\.ship"), "shipping by jobs or from a login node is not built yet; use auto or never"),
]


@dataclass(frozen=True)
class Trial:
    """One combination of axis values."""

    axes: dict[str, str]
    """Label by axis name."""
    experiment: Experiment
    swept: dict[str, Any]
    """What differs between trials: value by dotted key (a fragment counts under its axis's name)."""


@dataclass(frozen=True)
class Sweep:
    """A loaded config."""

    name: str
    path: Path
    trials: list[Trial]
    axes: dict[str, list[str]]
    sources: dict[str, str]
    """`file:line` or `command line` of every key that is set, by dotted key."""
    text: str
    """The config as one YAML document: bases and overrides merged, the sweep not expanded."""


def load(path: str | Path, overrides: Sequence[str] = (), *, user_config: Path | None = None) -> Sweep:
    """Load a config, expand its sweep, and validate every trial.

    Args:
        path: of the file, or `kdscale:NAME` of a shipped one.
        overrides: KEY=VALUE texts; several values sweep the key.
        user_config: lies under everything; default ~/.config/kdscale.yaml.

    Raises:
        ConfigError: one line: file:line, key, what, and the nearest valid key.
    """
    layer = _user_layer(user_config).under(read_layer(path))
    where = str(path)
    fixed, flag_axes = _flags(overrides)
    section = layer.values.pop("sweep", None) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{layer.sources.get('sweep', where)}: sweep: is a mapping of axes")
    base = _base_of(path)
    axes, exclude = axes_of(section, base, layer.sources.get("sweep", where).rpartition(":")[0] or where)
    axes = [axis for axis in axes if axis.name not in {a.name for a in flag_axes}] + flag_axes
    values = _set_all(layer.values, fixed)
    sources = {k: v for k, v in layer.sources.items() if not k.startswith("sweep.")} | dict.fromkeys(fixed, FLAG)
    trials = _trials(values, fixed, axes, exclude, sources, where)
    document = values | ({"sweep": section} if section else {})
    text = yaml.safe_dump(document, sort_keys=False)
    named = {axis.name: [point.label for point in axis.points] for axis in axes}
    return Sweep(trials[0].experiment.name, Path(where), trials, named, sources, text)


def resolve_stages(trial: Trial) -> dict[str, StageSpec]:
    """Every stage of a trial with the top level's sections merged into it, in the file's order.

    Raises:
        ConfigError: a stage's section does not fit, or a weight's arithmetic fails.
    """
    return {name: _stage(name, stage, trial) for name, stage in trial.experiment.stages.items()}


def parse_reference(text: str) -> tuple[str, str, str]:
    """Split STAGE[@SELECTOR][#PART] into stage, selector (default last) and part (default empty).

    Raises:
        ConfigError: the selector is none of last, best, epoch:N, acc:X.
    """
    whole, _, part = text.partition("#")
    stage, _, selector = whole.partition("@")
    selector = selector or "last"
    kind, _, value = selector.partition(":")
    good = selector in ("last", "best") or (kind == "epoch" and value.isdigit()) or (kind == "acc" and _share(value))
    if not stage or not good:
        raise ConfigError(f"{text}: say STAGE, STAGE@last, STAGE@best, STAGE@epoch:N or STAGE@acc:0.9")
    return stage, selector, part


# --------------------------------------------------------------------------- trials


def _user_layer(user_config: Path | None) -> Layer:
    if user_config is None:
        user_config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kdscale.yaml"
    return read_layer(user_config) if user_config.is_file() else Layer()


def _base_of(path: str | Path) -> Path:
    from kdscale.config.reading import shipped

    text = str(path)
    return (shipped(text) if text.startswith("kdscale:") else Path(text).expanduser().resolve()).parent


def _flags(overrides: Sequence[str]) -> tuple[dict[str, Any], list[Axis]]:
    """What the command line sets, and what it sweeps. Its relative paths start from the working directory."""
    fixed: dict[str, Any] = {}
    axes = []
    for text in overrides:
        key, values = parse_override(text)
        values = [absolute_paths({key: value}, Path.cwd())[key] for value in values]
        if len(values) == 1:
            fixed[key] = values[0]
        elif not values:
            raise ConfigError(f"{FLAG}: {text}: sweeps over nothing")
        else:
            axes += axes_of({key: values}, Path.cwd(), FLAG)[0]
    return fixed, axes


def _set_all(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    return apply(values, Point("", dict(fixed)), FLAG)


def _trials(
    values: dict[str, Any], fixed: Mapping[str, Any], axes: Sequence[Axis], exclude: Sequence[Mapping[str, Any]],
    sources: Mapping[str, str], where: str,
) -> list[Trial]:  # fmt: skip
    trials = []
    for combination in combinations(axes, exclude):
        patched: dict[str, Any] = values
        swept: dict[str, Any] = {}
        for axis, point in zip(axes, combination, strict=True):
            patched = apply(patched, point, f"{where}: sweep.{axis.name}.{point.label}")
            swept |= point.changes or {axis.name: point.label}
        if combination:
            patched = _set_all(patched, {k: v for k, v in fixed.items() if k not in swept})
        _refuse_what_is_not_built(patched, sources, where)
        experiment = _validated(Experiment, patched, "", sources, where)
        labels = {axis.name: point.label for axis, point in zip(axes, combination, strict=True)}
        trial = Trial(labels, experiment, swept)
        _check(trial, sources, where)
        trials.append(trial)
    if not trials:
        raise ConfigError(f"{where}: sweep.exclude leaves no trial")
    return trials


def _check(trial: Trial, sources: Mapping[str, str], where: str) -> None:
    """What needs no network to be seen: references, ids, weights."""
    stages = resolve_stages(trial)
    for name, spec in stages.items():
        at = f"{sources.get(f'stages.{name}', where)}: stages.{name}"
        for role, ref in spec.teachers.items():
            producer = parse_reference(ref.from_)[0]
            if producer not in stages:
                raise ConfigError(f"{at}.teachers.{role}.from: {producer} is no stage (there are: {', '.join(stages)})")
        terms = [term for terms in spec.passes.values() for term in terms]
        ids = [term.id for term in terms]
        for twice in {i for i in ids if ids.count(i) > 1}:
            raise ConfigError(f"{at}.losses: two terms are called {twice}; give one of them another id")
        for term in terms:
            if term.teacher is not None and term.teacher not in spec.teachers:
                have = ", ".join(spec.teachers) or "none"
                raise ConfigError(f"{at}.losses.{term.id}.teacher: {term.teacher} is no teacher of it (it has: {have})")


def _refuse_what_is_not_built(values: Mapping[str, Any], sources: Mapping[str, str], where: str) -> None:
    """Parts of the language that are designed and not built yet: each says so, none is ignored."""
    for key, value in _keys(values):
        for pattern, said in _NOT_BUILT:
            if pattern.fullmatch(key) and value not in (None, "ddp", "auto", "never"):
                raise ConfigError(f"{_line(key, sources, where)}: {key}: {said}")


def _keys(values: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of nested mappings, with its value."""
    if isinstance(values, dict):
        for key, value in values.items():
            path = f"{at}.{key}" if at else str(key)
            yield path, value
            yield from _keys(value, path)


def _line(key: str, sources: Mapping[str, str], where: str) -> str:
    return next((sources[k] for k in (key, key.rpartition(".")[0]) if k in sources), where)


def _validated(model: type[M], values: Any, at: str, sources: Mapping[str, str], where: str) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise complain(error, model, at, sources, where) from None


# --------------------------------------------------------------------------- stages


def _stage(name: str, stage: StageConfig, trial: Trial) -> StageSpec:
    top = trial.experiment
    at = f"stages.{name}"
    sections = {key: _section(getattr(top, key), getattr(stage, key), f"{at}.{key}") for key in _MERGED}
    passes = stage.passes if stage.passes is not None else {"main": stage.losses or []}
    return StageSpec(
        name=name,
        student=_student(stage.student),
        teachers=stage.teachers,
        passes={
            p: [_term(term, top.params, f"{at}.losses.{term.id}") for term in terms] for p, terms in passes.items()
        },
        strategy=stage.strategy,
        options=stage.options,
        init_from=_init(stage),
        train_only=stage.train_only,
        seed=top.seed if stage.seed is None else stage.seed,
        tracking=top.tracking,
        plugins=top.plugins,
        protocol=top.protocol,
        export=stage.export,
        expect=stage.expect,
        variant=variant_of(trial.swept, name),
        **sections,
    )


def _section(top: M, own: Mapping[str, Any], at: str) -> M:
    """The top level's section with the stage's own keys over it."""
    if not own:
        return top
    whole = merged(top.model_dump(exclude_unset=True), own)
    return _validated(type(top), whole, at, {}, at)


def _init(stage: StageConfig) -> InitFrom | None:
    if stage.init_from is None:
        return None
    if isinstance(stage.init_from, str):
        return InitFrom.model_validate({"from": stage.init_from, "skip": stage.init_skip})
    return stage.init_from


def _student(student: StudentConfig) -> StudentConfig:
    """Class names and maps that lie in a file are taken in: the file is not part of the identity, its lines are."""
    changes: dict[str, Any] = {}
    if isinstance(student.class_names, Path):
        changes["class_names"] = [line.strip() for line in student.class_names.read_text().splitlines() if line.strip()]
    if isinstance(student.class_map, Path):
        changes["class_map"] = [int(line) for line in student.class_map.read_text().split()]
    return student.model_copy(update=changes) if changes else student


def _term(term: TermConfig, params: Mapping[str, float], at: str) -> TermConfig:
    try:
        weight = evaluated(term.weight, params)
    except ConfigError as error:
        raise ConfigError(f"{at}.weight: {error}") from error
    numbers = list(itertools.chain.from_iterable(weight.values())) if isinstance(weight, dict) else [weight]
    if any(isinstance(n, (int, float)) and n < 0 for n in numbers):
        raise ConfigError(f"{at}.weight: {term.weight} is {weight} here: a weight is never below 0")
    return term if weight == term.weight else term.model_copy(update={"weight": weight})


def _share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False
