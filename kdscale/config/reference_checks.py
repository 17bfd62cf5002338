"""What can be seen to be wrong with what stages take from one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from kdscale.config.complaints import KeyedError, hint
from kdscale.config.schema import StageSpec, TermConfig
from kdscale.config.stages import parse_reference, term_key
from kdscale.errors import ConfigError

__all__ = ["check_order", "check_references"]


def check_references(name: str, spec: StageSpec, stages: Mapping[str, StageSpec]) -> None:
    """Check that what a stage takes of others will be there. Raises: KeyedError."""
    _check_whole(name, spec)
    for key, text in _references(name, spec):
        _check_reference(key, text, stages)
    for key, term in _terms_begun(name, spec):
        _check_parts(key, term, stages)


def _networks(name: str, spec: StageSpec) -> Iterator[tuple[str, str]]:
    """Stages whose network is taken, with the key that says so."""
    for role, ref in spec.teachers.items():
        if ref.from_ is not None:
            yield f"stages.{name}.teachers.{role}.from", ref.from_
    if spec.init_from is not None:
        yield f"stages.{name}.init_from", spec.init_from.from_


def _check_whole(name: str, spec: StageSpec) -> None:
    for key, text in _networks(name, spec):
        if "#" in text:
            said = f"a network is taken whole; parts that a term has trained are taken by a term: init_from: {text}"
            raise KeyedError(key, said)


def _references(name: str, spec: StageSpec) -> Iterator[tuple[str, str]]:
    yield from _networks(name, spec)
    for key, term in _terms_begun(name, spec):
        yield key, str(term.init_from)


def _check_reference(key: str, text: str, stages: Mapping[str, StageSpec]) -> None:
    try:
        producer, selector, _ = parse_reference(text)
    except ConfigError as error:
        raise KeyedError(key, str(error)) from error
    if producer not in stages:
        raise KeyedError(key, f"{producer} is no stage{hint(producer, stages)}")
    spec = stages[producer]
    kind, _, value = selector.partition(":")
    if kind in ("best", "acc") and not (spec.data.val_fraction > 0 and spec.train.epochs > 0):
        why = "data.val_fraction is 0" if spec.train.epochs else "it trains for no epoch"
        raise KeyedError(key, f"{text}: {producer} has no validation accuracy to be judged by ({why}); use @last")
    if kind == "epoch" and int(value) > spec.train.epochs:
        raise KeyedError(key, f"{text}: {producer} trains for {spec.train.epochs} epochs")


def _terms_begun(name: str, spec: StageSpec) -> Iterator[tuple[str, TermConfig]]:
    """Terms whose trained parts start from those of another stage's term, with the key that says so."""
    for pass_, terms in spec.passes.items():
        for term in terms:
            if term.init_from is not None:
                yield f"{term_key(spec, name, pass_, term.id)}.init_from", term


def _check_parts(key: str, term: TermConfig, stages: Mapping[str, StageSpec]) -> None:
    producer, selector, part = parse_reference(str(term.init_from))
    if selector != "last":
        raise KeyedError(key, f"a term's parts are kept after the last epoch only; say {producer}#{part or term.id}")
    known = {other.id: other.name for other in stages[producer].terms}
    wanted = part or term.id
    if wanted not in known:
        raise KeyedError(key, f"{producer} has no term {wanted}{hint(wanted, known)}")
    if known[wanted] != term.name:
        raise KeyedError(
            key, f"{producer}'s term {wanted} is {known[wanted]}, whose parts are not those of {term.name}"
        )


def check_order(stages: Mapping[str, StageSpec]) -> None:
    """Refuse stages that wait for each other. Raises: KeyedError."""
    edges = {name: [parse_reference(text)[0] for _, text in _references(name, spec)] for name, spec in stages.items()}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        circle = [str(name) for name in error.args[1]]
        raise KeyedError(f"stages.{circle[0]}", f"stages form a cycle: {' -> '.join(circle)}") from error
