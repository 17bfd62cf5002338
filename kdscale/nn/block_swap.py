"""Blocks of one network that run in the place of another's, for the length of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, pairwise, takewhile

import torch
from torch import Tensor, nn

from kdscale.draws import seed_of
from kdscale.errors import ConfigError, ShapeError, TapError
from kdscale.nn.network import Network

__all__ = ["Connectors", "Unit", "connectors_of", "even_groups", "even_pairs", "swapped_in", "units_of"]

Shape = tuple[int, ...]
Pairs = Mapping[str, Sequence[str]]
"""Module path in the student to the teacher's that run one after the other in its place."""


@dataclass(frozen=True)
class Unit:
    """A block of the student, and what may run in its place."""

    path: str
    own: nn.Module
    other: nn.Module


def even_groups(blocks: int, groups: int) -> list[list[int]]:
    """Cut 0, 1 .. blocks - 1 into consecutive groups of sizes as even as can be, larger ones first.

    Raises:
        ValueError: there are fewer blocks than groups.
    """
    if not 0 < groups <= blocks:
        raise ValueError(f"{blocks} blocks make no {groups} groups")
    size, larger = divmod(blocks, groups)
    ends = [size * n + min(n, larger) for n in range(groups + 1)]
    return [list(range(begin, end)) for begin, end in pairwise(ends)]


def even_pairs(student: nn.Module, teacher: nn.Module) -> dict[str, list[str]]:
    """Pair the blocks of two networks of one kind: each of the student's with an even part of the teacher's stage.

    The first block of a stage, which may stride, is in its first group.

    Raises:
        ConfigError: the networks have no such stages, are of two kinds, or the teacher's has fewer blocks.
    """
    stages, others = _stages(student), _stages(teacher)
    if type(student) is not type(teacher) or not stages or stages.keys() != others.keys():
        names = f"{type(student).__name__} and {type(teacher).__name__}"
        raise ConfigError(f"options.units: the blocks of {names} do not pair by themselves; {_SAY}")
    pairs = {}
    for stage, own in stages.items():
        theirs = others[stage]
        if len(theirs) < len(own):
            said = f"{stage} has {len(own)} blocks in the student and {len(theirs)} in the teacher"
            raise ConfigError(f"options.units: {said}; {_SAY}, or take a deeper teacher")
        for path, group in zip(own, even_groups(len(theirs), len(own)), strict=True):
            pairs[path] = [theirs[i] for i in group]
    return pairs


_SAY = "give them as {STUDENT PATH: [TEACHER PATH, ...]}, as `--list taps MODEL` names them"


def _stages(model: nn.Module) -> dict[str, list[str]]:
    """Paths of the blocks of stage1, stage2 and so on."""
    blocks = ((f"stage{number}", _blocks(model, f"stage{number}")) for number in count(1))
    return dict(takewhile(lambda stage: stage[1], blocks))


def _blocks(model: nn.Module, stage: str) -> list[str]:
    """Paths of a stage's blocks; none where it is no sequence of them."""
    for path in (stage, f"{stage}.layer"):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.Sequential):
            return [f"{path}.{name}" for name, _ in found.named_children()]
    return []


# --------------------------------------------------------------------------- connectors


class Connectors(nn.ModuleDict):
    """A 1x1 convolution with BN before a unit's other blocks (`into`) and after them (`out`), where widths differ."""


def connectors_of(student: Network, teacher: Network, pairs: Pairs, seed: int) -> dict[str, Connectors]:
    """Check that the blocks fit, and make what adapts their widths, by student path; most are empty.

    Their initial weights are functions of (seed, path).

    Raises:
        ConfigError: a path does not exist, does not run just once, or lies within another; or no pair is given.
        ShapeError: blocks do not follow one another, or differ in more than width.
        TapError: a term reads a feature that is not there when another block runs.
    """
    _check_paths(student, pairs)
    own = _shapes(student, list(pairs), "student")
    theirs = _shapes(teacher, [path for group in pairs.values() for path in group], "teacher")
    made = {}
    for path, group in pairs.items():
        for one, following in pairwise(group):
            if theirs[one][1] != theirs[following][0]:
                raise ShapeError(f"options.units.{path}: the teacher's {following} does not take what {one} gives")
        ends = {"into": (own[path][0], theirs[group[0]][0]), "out": (theirs[group[-1]][1], own[path][1])}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("init", seed, f"connectors.{path}"))
            made[path] = Connectors({k: _connector(path, *v) for k, v in ends.items() if v[0] != v[1]})
    return made


def units_of(student: Network, teacher: Network, pairs: Pairs, connectors: Mapping[str, Connectors]) -> list[Unit]:
    """Each pair with its connectors around the teacher's blocks, never around the student's."""
    units = []
    for path, group in pairs.items():
        around, chain = connectors[path], [teacher.model.get_submodule(name) for name in group]
        chain = [*(around[k] for k in ("into",) if k in around), *chain, *(around[k] for k in ("out",) if k in around)]
        units.append(Unit(path, student.model.get_submodule(path), nn.Sequential(*chain)))
    return units


@contextmanager
def swapped_in(model: nn.Module, units: Sequence[Unit]) -> Iterator[None]:
    """Within it, these units' other blocks run in `model`; its own sit out and are untouched."""
    try:
        for unit in units:
            model.set_submodule(unit.path, unit.other)
        yield
    finally:
        for unit in units:
            model.set_submodule(unit.path, unit.own)


# --------------------------------------------------------------------------- checks


def _check_paths(student: Network, pairs: Pairs) -> None:
    for path, group in pairs.items():
        if not group:
            raise ConfigError(f"options.units.{path}: names no block of the teacher")
        for other in pairs:
            if other.startswith(f"{path}."):
                raise ConfigError(f"options.units: {other} lies within {path}; leave one of them out")
        for catch in student.catches:
            if f"{catch.path}.".startswith(f"{path}."):
                said = f"the tap {catch.tap} lies in {path}, where the teacher's blocks run now and then"
                raise TapError(f"options.units: {said}; tap a whole stage, such as stage1", catch.tap)


def _shapes(network: Network, paths: Sequence[str], side: str) -> dict[str, tuple[Shape, Shape]]:
    """What each module takes and gives, without B, from a dry forward."""
    seen: dict[str, list[tuple[Shape, Shape]]] = {path: [] for path in paths}
    handles = []
    try:
        for path, found in seen.items():
            handles.append(_submodule(network.model, path, side).register_forward_hook(_noting(found)))
        network.dry(network.input.given_size)
    finally:
        for handle in handles:
            handle.remove()
    for path, found in seen.items():
        if len(found) != 1:
            said = "takes or gives something else than one tensor, or runs in no forward" if not found else "runs twice"
            raise ConfigError(f"options.units: {path} of the {side} {said}; name a module that maps a tensor to one")
    return {path: found[0] for path, found in seen.items()}


def _noting(found: list[tuple[Shape, Shape]]) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    """A forward hook that notes the shapes of a module from one tensor to one."""

    def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        del module
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            found.append((tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

    return hook


def _submodule(model: nn.Module, path: str, side: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ConfigError(f"options.units: the {side} has no module {path}; see --list taps") from error


def _connector(unit: str, given: Shape, wanted: Shape) -> nn.Module:
    if given[1:] != wanted[1:] or len(given) not in (1, 3):
        said = f"a block at {list(given)} meets one at {list(wanted)}; only channels may differ"
        raise ShapeError(f"options.units.{unit}: {said}")
    if len(given) == 1:
        return nn.Sequential(nn.Linear(given[0], wanted[0], bias=False), nn.BatchNorm1d(wanted[0]))
    return nn.Sequential(nn.Conv2d(given[0], wanted[0], 1, bias=False), nn.BatchNorm2d(wanted[0]))
