"""A trial's stages with everything merged into them: what is planned, hashed and run."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel

from kdscale.config.arithmetic import weight_of
from kdscale.config.complaints import KeyedError, validated
from kdscale.config.digest import variant_of
from kdscale.config.merging import merged
from kdscale.config.schema import Experiment, InitFrom, StageConfig, StageSpec, StudentConfig, TermConfig
from kdscale.errors import ConfigError

__all__ = ["MERGED", "parse_reference", "stages_of", "term_key"]

M = TypeVar("M", bound=BaseModel)
MERGED = ("train", "data", "engine", "resources", "eval")
"""Sections of a stage that lie over those of the top level, key by key."""


def stages_of(experiment: Experiment, swept: Mapping[str, Any]) -> dict[str, StageSpec]:
    """Every stage of a trial, in the file's order.

    Args:
        experiment: the trial.
        swept: what differs between the trials of its sweep, by dotted key.

    Raises:
        KeyedError: a stage's section does not fit, or a weight's arithmetic fails.
    """
    return {name: _stage(name, stage, experiment, swept) for name, stage in experiment.stages.items()}


def parse_reference(text: str) -> tuple[str, str, str]:
    """Split STAGE[@SELECTOR][#PART] into stage, selector (default last) and part (default empty).

    Raises:
        ConfigError: the selector is none of last, best, epoch:N, acc:X.
    """
    whole, _, part = text.partition("#")
    stage, at, selector = whole.partition("@")
    selector = selector if at else "last"
    kind, _, value = selector.partition(":")
    good = selector in ("last", "best") or (kind == "epoch" and value.isdecimal()) or (kind == "acc" and _share(value))
    if not stage or not good:
        raise ConfigError(f"{text}: say STAGE, STAGE@last, STAGE@best, STAGE@epoch:N or STAGE@acc:0.9")
    return stage, selector, part


def term_key(stage: StageConfig | StageSpec, name: str, pass_: str, term: str) -> str:
    """The key path of a term as its config has it: under `losses`, or under its pass."""
    simple = stage.losses is not None if isinstance(stage, StageConfig) else list(stage.passes) == ["main"]
    return f"stages.{name}.losses.{term}" if simple else f"stages.{name}.passes.{pass_}.{term}"


def _share(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _stage(name: str, stage: StageConfig, top: Experiment, swept: Mapping[str, Any]) -> StageSpec:
    at = f"stages.{name}"
    student = _network(name, top.stages)
    sections = {key: _section(getattr(top, key), getattr(stage, key), f"{at}.{key}") for key in MERGED}
    passes = stage.passes if stage.passes is not None else {"main": stage.losses or []}
    terms = {
        pass_: [_term(term, top.params, term_key(stage, name, pass_, term.id)) for term in found]
        for pass_, found in passes.items()
    }
    return StageSpec.model_construct(
        name=name,
        student=_student(student, f"{at}.student"),
        teachers=stage.teachers,
        passes=terms,
        strategy=stage.strategy,
        options=stage.options,
        drop=stage.drop,
        init_from=_init(stage, at),
        train_only=stage.train_only,
        seed=top.seed if stage.seed is None else stage.seed,
        tracking=top.tracking,
        plugins=top.plugins,
        protocol=top.protocol,
        export=stage.export,
        expect=stage.expect,
        variant=variant_of(swept, name, stage),
        **sections,
    )


def _section(top: M, own: Mapping[str, Any], at: str) -> M:
    """The top level's section with the stage's own keys over it."""
    return validated(type(top), merged(top.model_dump(exclude_unset=True), own), at) if own else top


def _init(stage: StageConfig, at: str) -> InitFrom | None:
    if isinstance(stage.init_from, str):
        return InitFrom.model_validate({"from": stage.init_from, "skip": stage.init_skip})
    if stage.init_skip:
        said = "init_from.skip says it already" if stage.init_from else "there is no init_from to skip parts of"
        raise KeyedError(f"{at}.init_skip", said)
    return stage.init_from


def _network(name: str, stages: Mapping[str, StageConfig]) -> StudentConfig:
    """A stage's network; one that says none hands weights on to, or takes them from, a stage that does."""
    own = stages[name].student
    if own is not None:
        return own
    starts = {other: _source(stage) for other, stage in stages.items()}
    related = [starts[name], *(other for other, source in starts.items() if source == name)]
    found = [stages[other].student for other in related if other in stages]
    networks = [network for network in found if network is not None]
    if not networks:
        near = get_close_matches(name, [other for other, stage in stages.items() if stage.student is not None], 1)
        slip = f"no stage is called {name}; did you mean {near[0]}?" if near else ""  # rather than a new stage
        said = "a stage has its own, that of its init_from, or that of a stage whose init_from it is"
        raise KeyedError(f"stages.{name}.student", f"is missing: {slip or said}")
    if any(network != networks[0] for network in networks):
        raise KeyedError(f"stages.{name}.student", "is missing, and the networks around it differ: name one")
    return networks[0]


def _source(stage: StageConfig) -> str:
    """The stage that one starts from; empty for one that starts fresh."""
    init = stage.init_from
    return parse_reference(init.from_ if isinstance(init, InitFrom) else init)[0] if init else ""


def _student(student: StudentConfig, at: str) -> StudentConfig:
    """Class names and maps that lie in a file are taken in: the file is not part of the identity, its lines are."""
    changes: dict[str, Any] = {}
    try:
        for key in ("class_names", "class_map"):
            value = getattr(student, key)
            if value is not None and not isinstance(value, list):
                lines = value.read_text(encoding="utf-8").splitlines()
                changes[key] = [line.strip() for line in lines if line.strip()]
        if "class_map" in changes:
            key = "class_map"
            changes[key] = [int(number) for line in changes[key] for number in line.replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise KeyedError(f"{at}.{key}", f"{getattr(student, key)} cannot be read: {error}") from error
    return student.model_copy(update=changes) if changes else student


def _term(term: TermConfig, params: Mapping[str, float], at: str) -> TermConfig:
    try:
        weight = weight_of(term.weight, params)
    except ConfigError as error:
        raise KeyedError(f"{at}.weight", str(error)) from error
    return term if weight == term.weight else term.model_copy(update={"weight": weight})
