"""From a file and its overrides to the trials of a sweep, each validated before anything starts.

user's config  <  bases (extends)  <  the file  <  named patches  <  other axes  <  KEY=VALUE
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdscale.config.arithmetic import names_in
from kdscale.config.axes import combinations
from kdscale.config.checks import check_trial
from kdscale.config.complaints import KeyedError, hint, located, validated
from kdscale.config.macros import expanded
from kdscale.config.merging import Layer
from kdscale.config.parsing import shown_path, write_value
from kdscale.config.patches import FLAG, Override, Point, parse_override
from kdscale.config.published import Combination, PublishedFigure, those_that_apply
from kdscale.config.reading import read_layer, user_layer
from kdscale.config.schema import Experiment, StageSpec
from kdscale.config.search import SearchConfig
from kdscale.config.stages import parse_reference, stages_of
from kdscale.config.sweep_section import Section, Suggested
from kdscale.errors import ConfigError

__all__ = ["Sweep", "Trial", "load", "named_sources", "parse_reference", "resolve_stages"]


@dataclass(frozen=True)
class Trial:
    """One combination of axis values."""

    axes: dict[str, str]
    """Label by axis name."""
    experiment: Experiment
    swept: dict[str, Any]
    """What differs between trials: value by dotted key (a fragment counts under its axis's name)."""
    sources: dict[str, str] = field(default_factory=dict, repr=False)
    """`file:line` or `command line` of every key that is set, by dotted key, items of lists by number."""

    @cached_property
    def stages(self) -> dict[str, StageSpec]:
        return stages_of(self.experiment, self.swept)


@dataclass(frozen=True)
class Sweep:
    """A loaded config."""

    name: str
    path: Path
    trials: list[Trial]
    axes: dict[str, list[str]]
    sources: dict[str, str]
    """Place of every key that any trial sets, by dotted key, items of lists by their id."""
    text: str
    """The config as one YAML document: bases and overrides merged, the sweep not expanded."""
    expect: list[PublishedFigure] = field(default_factory=list)
    """Published figures that apply to these trials."""
    search: SearchConfig | None = None
    """Where trials are suggested as others end; `trials` are then the corners of its space, which nobody runs."""
    suggested: Callable[[Suggested], list[Trial]] = field(default=lambda _: [], repr=False)
    """Makes the trials of suggestions by their labels. Raises: ConfigError."""


def load(path: str | Path, overrides: Sequence[str] = (), *, user_config: Path | None = None) -> Sweep:
    """Load a config, expand its sweep, and validate every trial.

    Args:
        path: of the file, or `kdscale:NAME` of a shipped one.
        overrides: KEY=VALUE texts; several values sweep the key.
        user_config: lies under everything; default ~/.config/kdscale.yaml.

    Raises:
        ConfigError: one line: file:line, key, what, and the nearest valid key.
    """
    where = shown_path(Path(path)) if not str(path).startswith("kdscale:") else str(path)
    whole = user_layer(user_config).under(read_layer(path))
    flags = [parse_override(text) for text in overrides]
    section = Section(whole, flags, where)
    base = Layer({k: v for k, v in whole.values.items() if k != "sweep"}, whole.sources)
    trials = list(_trials(base, section, where))
    _refuse_params_without_use(trials, flags)
    text = write_value(_document(base, section))
    axes = {axis.name: [point.label for point in axis.points] for axis in section.axes}
    sources = {key: place for trial in reversed(trials) for key, place in named_sources(trial).items()}
    expect = _published(trials, section, where)

    def suggested(values: Suggested) -> list[Trial]:
        return list(_trials(base, Section(whole, flags, where, values), where))

    return Sweep(trials[0].experiment.name, Path(where), trials, axes, sources, text, expect, section.search, suggested)


def resolve_stages(trial: Trial) -> dict[str, StageSpec]:
    """Every stage of a trial with the top level's sections merged into it, in the file's order.

    Raises:
        ConfigError: a stage's section does not fit, or a weight's arithmetic fails.
    """
    return trial.stages


# --------------------------------------------------------------------------- trials


def _trials(base: Layer, section: Section, where: str) -> Iterator[Trial]:
    flags = Layer(dict(section.fixed), dict.fromkeys(section.fixed, FLAG))
    shared: dict[tuple[int, ...], Layer] = {(): base}
    swept_by_all = list(combinations(section.axes, section.exclude))
    differing = _differing(swept_by_all) | set(section.search.space if section.search else ())
    for number, combination in enumerate(swept_by_all):
        labels = {axis.name: point.label for axis, point in zip(section.axes, combination, strict=True)}
        layer = base
        try:
            layer = _applied(section, combination, flags, shared)
            layer = expanded(layer)
            yield _trial(layer, labels, {k: v for p in combination for k, v in p.changes.items() if k in differing})
        except KeyedError as error:
            place, key = located(error, layer, where)
            which = _which(section, combination, labels) if number or "(sweep." in place else ""
            raise ConfigError(f"{place}: {key}: {error.what}{which}") from error
    if not swept_by_all:
        raise ConfigError(f"{where}: sweep.exclude leaves no trial")


def _which(section: Section, combination: Sequence[Point], labels: Mapping[str, str]) -> str:
    """Which trial an error is of: of a search its values, as nobody has seen its name."""
    if section.search is None:
        return f" (in trial {' · '.join(labels.values())})"
    return f" (with {', '.join(f'{key}={value}' for key, value in combination[0].changes.items())})"


def _applied(
    section: Section, combination: Sequence[Point], flags: Layer, shared: dict[tuple[int, ...], Layer]
) -> Layer:
    """The config of one trial; what the trials before have in common with it is not laid again."""
    points = section.in_order(combination)
    late = [point for axis, point in zip(section.axes, combination, strict=True) if section.is_flags(axis)]
    done: tuple[int, ...] = ()
    for point in [p for p in points if p not in late]:
        before, done = shared[done], (*done, id(point))
        if done not in shared:
            shared[done] = point.applied(before)
    layer = shared[done].under(flags)
    for point in late:
        layer = point.applied(layer)
    return layer


def _differing(combined: Sequence[Sequence[Point]]) -> set[str]:
    """Keys that points change and that are not the same in all trials."""
    changes = [{k: v for point in points for k, v in point.changes.items()} for points in combined]
    keys = {key for one in changes for key in one}
    return {key for key in keys if any(key not in one or one[key] != changes[0].get(key) for one in changes)}


def _trial(layer: Layer, labels: dict[str, str], swept: dict[str, Any]) -> Trial:
    trial = Trial(labels, validated(Experiment, layer.values), swept, layer.sources)
    check_trial(trial.experiment, trial.stages)
    return trial


def _refuse_params_without_use(trials: Sequence[Trial], flags: Sequence[Override]) -> None:
    """A param that is set on the command line or swept, and that no weight names, is a slip that would go unseen."""
    wanted = {flag.key for flag in flags} | {key for trial in trials for key in trial.swept}
    chosen = {key.removeprefix("params.") for key in wanted if key.startswith("params.")}
    used: set[str] = set()
    for trial in trials if chosen else ():
        for stage in trial.experiment.stages.values():
            for term in [*(stage.losses or []), *(t for terms in (stage.passes or {}).values() for t in terms)]:
                texts = next(iter(term.weight.values())) if isinstance(term.weight, dict) else [term.weight]
                used |= {name for text in texts if isinstance(text, str) for name in names_in(text)}
    for name in sorted(chosen - used):
        raise ConfigError(f"{FLAG}: params.{name}: no weight of any trial names it{hint(name, used)}")


def _published(trials: Sequence[Trial], section: Section, where: str) -> list[PublishedFigure]:
    """The sweep's published figures, which all of its trials have alike."""
    first = trials[0].experiment
    combined = [Combination(trial.axes, trial.experiment.stages) for trial in trials]
    try:
        return those_that_apply(first.expect, combined, first.protocol, lenient=bool(section.flagged))
    except KeyedError as error:
        place, key = located(error, Layer({}, trials[0].sources), where)
        raise ConfigError(f"{place}: {key}: {error.what}") from error


# --------------------------------------------------------------------------- for the record


def named_sources(trial: Trial) -> dict[str, str]:
    """A trial's places with terms under their ids as people and identities write them."""
    return {_named(key, trial.experiment): place for key, place in trial.sources.items()}


def _named(key: str, experiment: Experiment) -> str:
    parts = key.split(".")
    stage = experiment.stages.get(parts[1]) if len(parts) > 3 and parts[0] == "stages" else None
    terms = stage.losses if stage and parts[2] == "losses" else None
    at = 3
    if stage and parts[2] == "passes" and len(parts) > 4:
        terms, at = (stage.passes or {}).get(parts[3]), 4
    if terms and parts[at].isdigit() and int(parts[at]) < len(terms):
        parts[at] = terms[int(parts[at])].id
    return ".".join(parts)


def _document(base: Layer, section: Section) -> dict[str, Any]:
    """The config with its bases and the command line merged in; a key that only some trials have stays dotted."""
    values, left = base, {}
    for key, value in section.fixed.items():
        try:
            values = values.under(Layer({key: value}))
        except ConfigError:
            left[key] = value
    return values.values | ({"sweep": section.values} if section.values else {}) | left
