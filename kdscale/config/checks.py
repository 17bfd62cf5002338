"""What can be seen to be wrong with a trial's stages without building a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from kdscale import plugins
from kdscale.config.complaints import KeyedError, hint
from kdscale.config.evaluation_checks import check_evaluation, check_export
from kdscale.config.reference_checks import check_order, check_references
from kdscale.config.schema import Experiment, StageSpec, StudentConfig, TeacherRef, TermConfig
from kdscale.config.stages import parse_reference, term_key
from kdscale.own_code import is_own

__all__ = ["check_trial"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_RESERVED = {"data": "the conversion of the data set has this name", "latest": "it means the newest sweep"}

_ONE_OF = {
    "losses": "loss",
    "modifiers": "modifier",
    "strategies": "strategy",
    "models": "model",
    "datasets": "data set",
}


def check_trial(experiment: Experiment, stages: Mapping[str, StageSpec]) -> None:
    """Check names, references, terms and plug-ins of a trial.

    Raises:
        KeyedError: with the key path of the first thing that cannot work.
    """
    _check_name("name", experiment.name, also=".")
    for name, spec in stages.items():
        _check_name(f"stages.{name}", name)
        if name in _RESERVED:
            raise KeyedError(f"stages.{name}", f"{_RESERVED[name]}; call the stage something else")
        _check_plugins(name, spec)
        _check_engine(name, spec)
        _check_teachers(name, spec)
        _check_terms(name, spec)
        _check_drop(name, spec)
        check_evaluation(spec, partial(_check_dataset, spec=spec))
        check_export(spec)
        _check_split_head(name, spec, stages)
        check_references(name, spec, stages)
    check_order(stages)


# --------------------------------------------------------------------------- engine


def _check_engine(name: str, spec: StageSpec) -> None:
    at, engine, train = f"stages.{name}", spec.engine, spec.train
    if engine.name != "deepspeed":
        if engine.zero_stage:
            raise KeyedError(f"{at}.engine.zero_stage", f"{engine.name} shards nothing; set engine.name: deepspeed")
        return
    if train.precision == "fp16":
        raise KeyedError(f"{at}.train.precision", "engine deepspeed trains in fp32 or bf16; engine ddp also in fp16")
    if train.compile and engine.zero_stage == 3:
        raise KeyedError(f"{at}.train.compile", "ZeRO 3 gathers weights between modules, which are one when compiled")


# --------------------------------------------------------------------------- teachers


def _check_teachers(name: str, spec: StageSpec) -> None:
    for role, ref in spec.teachers.items():
        at = f"stages.{name}.teachers.{role}"
        _check_name(at, role)
        if ref.virtual is not None:
            _check_virtual(at, ref)
        elif ref.mean is None:
            _check_one_network(at, ref)
        else:
            _check_ensemble(at, ref, ref.mean)
            for member in ref.mean:
                _check_member(f"{at}.mean", role, member, spec.teachers)


def _check_one_network(at: str, ref: TeacherRef) -> None:
    if ref.from_ is None:
        raise KeyedError(f"{at}.from", "is missing: name a stage, or give the members of an ensemble as mean: [a, b]")
    for key in ("of", "weights"):
        if key in ref.model_fields_set:
            raise KeyedError(f"{at}.{key}", "is for an ensemble, which names its members as mean: [a, b]; leave it out")


def _check_virtual(at: str, ref: TeacherRef) -> None:
    for key in ("from", "mean", "of", "weights", "cache"):
        if (key if key != "from" else "from_") in ref.model_fields_set:
            raise KeyedError(f"{at}.virtual", f"a virtual teacher answers from the labels alone; leave {key} out")


def _check_ensemble(at: str, ref: TeacherRef, members: list[str]) -> None:
    if ref.from_ is not None:
        said = f"an ensemble is no stage: give {ref.from_} a name of its own under teachers, and add that to mean"
        raise KeyedError(f"{at}.from", said)
    if ref.cache is not None:
        raise KeyedError(f"{at}.cache", f"a mean is not kept, but what it is made from: set it in {', '.join(members)}")
    if len(members) < 2:
        single = f"listen to {members[0]} itself" if members else "say mean: [a, b]"
        raise KeyedError(f"{at}.mean", f"an ensemble has at least two members; {single}")
    for member in members:
        if members.count(member) > 1:
            raise KeyedError(f"{at}.mean", f"{member} is named twice; give it a larger weight")
    if ref.weights is not None and len(ref.weights) != len(members):
        raise KeyedError(f"{at}.weights", f"{len(ref.weights)} weights for {len(members)} members; give one each")


def _check_member(key: str, role: str, member: str, teachers: Mapping[str, TeacherRef]) -> None:
    if member == role:
        raise KeyedError(key, f"{role} cannot be a member of itself")
    if member not in teachers:
        networks = [name for name, ref in teachers.items() if ref.from_ is not None]
        raise KeyedError(key, f"{member} is no teacher of this stage{hint(member, networks)}")
    if teachers[member].virtual is not None:
        raise KeyedError(key, f"{member} is virtual, which no network is averaged with; give it a term of its own")
    inner = teachers[member].mean
    if inner is not None:
        raise KeyedError(key, f"{member} is an ensemble itself; name its members instead ({', '.join(inner)})")


# --------------------------------------------------------------------------- terms


def _check_terms(name: str, spec: StageSpec) -> None:
    at = f"stages.{name}"
    seen: set[str] = set()
    for pass_, terms in spec.passes.items():
        for number, term in enumerate(terms):
            _check_name(f"{term_key(spec, name, pass_, str(number))}.id", term.id)
            key = term_key(spec, name, pass_, term.id)
            if term.id in seen:
                raise KeyedError(key, f"two terms are called {term.id}; give one of them another id")
            seen.add(term.id)
            _check_teacher(key, term, spec)
            _check_options(key, "losses", term.name, term.options)
            for modifier in term.modifiers:
                _check_exists(f"{key}.modifiers.{modifier.name}", "modifiers", modifier.name, spec)
                _check_options(f"{key}.modifiers.{modifier.name}", "modifiers", modifier.name, modifier.options)
    if not seen and spec.train.epochs and spec.strategy == "distill":
        raise KeyedError(f"{at}.losses", "a stage that trains needs a term, such as [{name: ce}]")


def _check_teacher(key: str, term: TermConfig, spec: StageSpec) -> None:
    if term.teacher is not None and term.teacher not in spec.teachers:
        raise KeyedError(
            f"{key}.teacher", f"{term.teacher} is no teacher of this stage{hint(term.teacher, spec.teachers)}"
        )
    _check_exists(f"{key}.name", "losses", term.name, spec)
    members = spec.teachers[term.teacher].mean if term.teacher is not None else None
    if members and term.taps is not None and term.taps.teacher:
        said = f"{term.teacher} is an ensemble, whose members differ in their features; listen to one of them"
        raise KeyedError(f"{key}.taps.teacher", f"{said} (teacher: {' or '.join(members)})")
    if term.taps is not None and term.taps.teacher and _hears_labels(term, spec):
        raise KeyedError(f"{key}.taps.teacher", "a virtual teacher has no features; listen to a network")
    if term.teacher is None and _hears(term, spec) and len(spec.teachers) != 1:
        have = f"this stage has {', '.join(spec.teachers)}" if spec.teachers else "this stage has none"
        raise KeyedError(key, f"{term.name} needs a teacher: set teacher: NAME ({have})")


def _hears(term: TermConfig, spec: StageSpec) -> bool:
    return plugins.needs_teacher(term.name, spec.plugins.path)


def _hears_labels(term: TermConfig, spec: StageSpec) -> bool:
    """Whether a term's teacher is virtual; the only one when it names none."""
    role = term.teacher or next(iter(spec.teachers), "")
    return role in spec.teachers and spec.teachers[role].virtual is not None


def _check_drop(name: str, spec: StageSpec) -> None:
    """What is dropped is chosen among the terms that hear a teacher, and something is left to learn from."""
    for pass_, terms in spec.passes.items() if spec.drop else ():
        taught = [term for term in terms if _hears(term, spec)]
        others = [term for term in terms if term not in taught and term.weight != 0]
        if spec.drop > len(taught) or (spec.drop == len(taught) and not others):
            at = "" if list(spec.passes) == ["main"] else f" of pass {pass_}"
            left = "" if others else ", and nothing is left to learn from"
            said = f"{spec.drop} of {len(taught)} terms that hear a teacher{at} would be dropped{left}; drop fewer"
            raise KeyedError(f"stages.{name}.drop", said)


def _check_split_head(name: str, spec: StageSpec, stages: Mapping[str, StageSpec]) -> None:
    """What follows a split head does not train with it, so it comes from a network of the same kind."""
    if spec.strategy != "split_head":
        return
    if spec.init_from is None:
        said = "split_head takes what follows its head from another stage, unchanged: set init_from: TEACHER"
        raise KeyedError(f"stages.{name}.strategy", said)
    source = stages.get(parse_reference(spec.init_from.from_)[0])
    own = (spec.student.model, spec.student.arguments)
    if source is not None and own != (source.student.model, source.student.arguments):
        said = f"{source.name} is another network ({source.student.model}); give student the same model and arguments"
        raise KeyedError(f"stages.{name}.init_from", said)


# --------------------------------------------------------------------------- plug-ins


def _check_plugins(name: str, spec: StageSpec) -> None:
    at = f"stages.{name}"
    _check_exists(f"{at}.strategy", "strategies", spec.strategy, spec)
    _check_options(f"{at}.options", "strategies", spec.strategy, spec.options)
    _check_dataset(f"{at}.data", spec.data.name, spec.data.options, spec)
    _check_model(f"{at}.student", spec.student, spec)


def _check_dataset(at: str, name: str, options: Mapping[str, Any], spec: StageSpec) -> None:
    _check_exists(f"{at}.name", "datasets", name, spec)
    _check_options(f"{at}.options", "datasets", name, options)


def _check_model(key: str, student: StudentConfig, spec: StageSpec) -> None:
    if ":" in student.model:
        _check_allowed(f"{key}.model", student.model, spec)
        return
    _check_exists(f"{key}.model", "models", student.model, spec)
    _check_options(key, "models", student.model, student.arguments)
    if student.weights is not None and not student.weights.is_file():
        raise KeyedError(f"{key}.weights", f"no such file: {student.weights}")


def _check_allowed(key: str, name: str, spec: StageSpec) -> None:
    """A user's own code is imported later; here it is seen whether it may be."""
    package = name.partition(":")[0].partition(".")[0]
    if is_own(name) and package not in spec.plugins.allow:
        said = f"{name}: {package} may not be imported; add it to plugins: {{allow: [{package}]}}"
        raise KeyedError(key, said)


def _check_exists(key: str, kind: str, name: str, spec: StageSpec) -> None:
    if is_own(name) and kind in ("losses", "modifiers", "strategies"):
        _check_allowed(key, name, spec)
    elif name not in plugins.available(kind):
        raise KeyedError(key, f"there is no {_ONE_OF[kind]} {name}{hint(name, plugins.available(kind))}")


def _check_options(key: str, kind: str, name: str, given: Mapping[str, Any]) -> None:
    """Option names of kdscale's own plug-ins, without importing them; values are checked when they are built."""
    known = plugins.options(kind, name)
    if known is None:
        return
    for option in given:
        if option not in known:
            raise KeyedError(f"{key}.{option}", f"unknown key{hint(option, known)} ({name})")


def _check_name(key: str, name: str, *, also: str = "") -> None:
    if not _NAME.fullmatch(name.translate({ord(sign): "_" for sign in also})):
        raise KeyedError(key, f"{name!r} is part of folder names and key paths: use letters, digits, _ and -")
