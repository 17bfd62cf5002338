"""The edges between stages: who takes from whom, and in which order they can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from kdscale.config.load import parse_reference
from kdscale.config.schema import StageSpec
from kdscale.errors import ConfigError
from kdscale.pipeline.planned import PlannedStage

__all__ = ["in_depth", "in_order", "parents_first", "parents_of"]


def parents_of(spec: StageSpec, known: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Role to (digest, selector) of every stage that this one takes from."""
    found = {}
    for role, text in _references(spec).items():
        stage, selector, _ = parse_reference(text)
        found[role] = (known[stage], selector)
    for term in spec.terms_begun:
        stage, selector, part = parse_reference(str(term.init_from))
        found[f"terms.{term.id}"] = (known[stage], f"{selector}#{part or term.id}")
    return found


def _references(spec: StageSpec) -> dict[str, str]:
    """Role to reference; an ensemble takes from no stage but through its members."""
    found = {role: ref.from_ for role, ref in spec.teachers.items() if ref.from_ is not None}
    return found | ({"init_from": spec.init_from.from_} if spec.init_from is not None else {})


def in_order(specs: Mapping[str, StageSpec]) -> list[str]:
    """Names of a trial's stages, parents first. Raises: ConfigError for an unknown reference or a cycle."""
    edges = {}
    for name, spec in specs.items():
        texts = [*_references(spec).values(), *(str(term.init_from) for term in spec.terms_begun)]
        edges[name] = [parse_reference(text)[0] for text in texts]
        for parent in edges[name]:
            if parent not in specs:
                raise ConfigError(f"stages.{name}: takes from {parent}, which is no stage ({', '.join(specs)})")
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        raise ConfigError(f"stages form a cycle: {' -> '.join(error.args[1])}") from error


def parents_first(stages: Mapping[str, PlannedStage]) -> list[str]:
    """Digests of all stages, parents first."""
    edges = {digest: [d for d, _ in stage.parents.values()] for digest, stage in stages.items()}
    return list(TopologicalSorter(edges).static_order())


def in_depth(stages: Mapping[str, PlannedStage]) -> dict[str, PlannedStage]:
    """All stages, parents first, each with its depth: the longest way to one that takes from nobody."""
    found: dict[str, PlannedStage] = {}
    for digest in parents_first(stages):
        stage = stages[digest]
        depth = max((found[parent].depth + 1 for parent, _ in stage.parents.values()), default=0)
        found[digest] = replace(stage, depth=depth)
    return found
