"""Macros: networks that teach each other along a path, expanded to ordinary stages before anything is validated.

chain    each network learns from the one before it, its `teacher`
dense    each learns from all before it, called by their names; `drop` leaves some of them out at each step
grow     each learns from the first, `teacher`, and from the one before it, `previous`; `rounds: n` does so n times,
         each time under the network that grew last

chain:
  networks: {r26: {model: resnet_cifar, depth: 26}, r14: {...}, r8: {...}}
  path: [r26, r14, r8]       default: all networks, in their order
  losses: [...]              of every stage but the first, which learns from labels alone
  selector: best             which snapshot of a network teaches; default last
  cache: {views: 8}          its answers from disk

A network's stage has its name, in round n > 1 of grow NAME_n. What the config itself says under stages.NAME lies over
the expanded stage, key by key, terms by their ids; of a network that is not on the path it says nothing. The first of
the path may be a stage of the config's own.
`losses` are terms as in a stage. dense gives each guide a copy of every term that listens to a teacher, NAME_GUIDE; in
grow such a term says `teacher: teacher` or `teacher: previous`, of whom the smallest network has none. `weight: rest`
is what the other terms of the stage leave of 1; what would be below 0 is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from kdscale import plugins
from kdscale.config.complaints import KeyedError, hint, validated
from kdscale.config.macro_sources import cited
from kdscale.config.merging import Layer, called
from kdscale.config.patches import flattened
from kdscale.config.schema import CacheConfig, PluginsConfig, StudentConfig, TermConfig
from kdscale.config.sections import Model
from kdscale.own_code import is_own

__all__ = ["MACROS", "ChainConfig", "DenseConfig", "GrowConfig", "expanded"]

Terms = list[dict[str, Any]]
Teachers = dict[str, str]
"""Stage by the role in which it teaches."""
REST = "rest"


class ChainConfig(Model):
    """Each network learns from the one before it."""

    networks: dict[str, StudentConfig] = Field({}, description="by name, which is that of the network's stage")
    path: Annotated[list[str], Field(min_length=2)] | None = Field(
        None, description="names from the first teacher to the last student; default: all networks in their order"
    )
    losses: Annotated[list[TermConfig], Field(min_length=1)] = Field(
        description="of every stage but the first; `weight: rest` is what the others leave of 1"
    )
    selector: str = Field("last", description="of the network that teaches: last, best, epoch:n or acc:x")
    cache: CacheConfig | bool = Field(False, description="answers of those that teach from disk")

    def names(self) -> list[str]:
        """The path."""
        return list(self.networks) if self.path is None else self.path


class DenseConfig(ChainConfig):
    """Each network learns from all before it."""

    drop: int = Field(0, ge=0, description="terms left out at each step, in stages that have more guides than that")
    normalise: Literal["none", "mean"] = Field("none", description="mean: weights are divided by the number of guides")


class GrowConfig(ChainConfig):
    """Each network learns from the first of the path and from the one before it."""

    rounds: PositiveInt = Field(1, description="how often it grows; from the second on the last network is the teacher")


MACROS: Mapping[str, type[ChainConfig]] = {"chain": ChainConfig, "dense": DenseConfig, "grow": GrowConfig}
"""By their keys in a config."""


@dataclass
class _Stage:
    """An expanded stage, and which key of the macro each part is from."""

    name: str
    network: str
    """Where it is none of the macro's, the stage is the config's own."""
    teachers: Teachers = field(default_factory=dict)
    terms: Sequence[tuple[int, dict[str, Any]]] = ()
    """With the number of each in the macro's losses; none: it learns from labels."""
    drop: int = 0


def expanded(layer: Layer) -> Layer:
    """Replace a config's macros by their stages, with the config's own stages laid over them.

    Raises:
        KeyedError: with the macro's key.
    """
    made: dict[str, Any] = {}
    sources: dict[str, str] = {}
    known: set[str] = set()
    cites: dict[str, str] = {}
    own_code = validated(PluginsConfig, layer.values.get("plugins") or {}, "plugins").path
    for key, model in MACROS.items():
        section = layer.values.get(key)
        if section is None:
            continue
        macro = validated(model, section, key)
        known |= macro.networks.keys()
        cites |= cited(key, macro.names())
        _check_path(key, macro, layer.values.get("stages"))
        every = _STAGES[key](macro, section["losses"], own_code)
        for stage in (one for one in every if one.network in macro.networks):
            values, places = _written(stage, key, macro, section, layer)
            if made.get(stage.name, values) != values:
                raise KeyedError(f"{key}.path", f"another macro makes a different stage {stage.name}: rename a network")
            made[stage.name] = values
            sources |= places
    rest = {key: value for key, value in layer.values.items() if key not in MACROS}
    if not made:
        return Layer(rest, layer.sources)
    stages = rest.pop("stages", None) or {}
    beside = {n: one for n, one in stages.items() if n in made or n not in known or "student" in (one or {})}
    own = _over(beside, made)
    return Layer({"stages": made} | ({"cite": cites} if cites else {}), sources).under(Layer(rest | own, layer.sources))


# --------------------------------------------------------------------------- the stages of each macro


def _chain(macro: ChainConfig, losses: Terms, own: Sequence[Path]) -> Iterator[_Stage]:
    del own
    path = macro.names()
    for term in losses:
        _refuse_a_teacher("chain", term)
    yield _Stage(path[0], path[0])
    for before, name in pairwise(path):
        yield _Stage(name, name, {"teacher": before}, list(enumerate(losses)))


def _dense(macro: ChainConfig, losses: Terms, own: Sequence[Path]) -> Iterator[_Stage]:
    assert isinstance(macro, DenseConfig)
    path = macro.names()
    for term in losses:
        _refuse_a_teacher("dense", term)
    yield _Stage(path[0], path[0])
    for count, name in enumerate(path[1:], start=1):
        guides = path[:count]
        terms = [(i, copy) for i, term in enumerate(losses) for copy in _copies(term, guides, macro, own)]
        drop = macro.drop if macro.drop < count else 0
        yield _Stage(name, name, dict(zip(guides, guides, strict=True)), terms, drop)


def _grow(macro: ChainConfig, losses: Terms, own: Sequence[Path]) -> Iterator[_Stage]:
    assert isinstance(macro, GrowConfig)
    teacher, *sizes = macro.names()
    for term in losses:
        if _listens(term, own) and term.get("teacher") not in ("teacher", "previous"):
            raise KeyedError(f"grow.losses.{_id(term)}.teacher", "say teacher: teacher, or teacher: previous")
    yield _Stage(teacher, teacher)
    for number in range(1, macro.rounds + 1):
        previous = ""
        for network in sizes:
            name = network if number == 1 else f"{network}_{number}"
            known = {"teacher": teacher} | ({"previous": previous} if previous else {})
            terms = [(i, term) for i, term in enumerate(losses) if term.get("teacher", "teacher") in known]
            heard = {term.get("teacher") for _, term in terms}
            yield _Stage(name, network, {role: stage for role, stage in known.items() if role in heard}, terms)
            previous = name
        teacher = previous


_STAGES = {"chain": _chain, "dense": _dense, "grow": _grow}


def _copies(term: dict[str, Any], guides: Sequence[str], macro: DenseConfig, own: Sequence[Path]) -> Terms:
    """A term for each guide; one that listens to nobody once."""
    if not _listens(term, own):
        return [term]
    weight = term.get("weight", 1.0)
    if macro.normalise == "mean" and len(guides) > 1:
        _refuse_a_schedule(f"dense.losses.{_id(term)}.weight", weight, "normalise: mean divides")
        weight = f"({weight}) / {len(guides)}"
    return [term | {"id": f"{_id(term)}_{guide}", "teacher": guide, "weight": weight} for guide in guides]


# --------------------------------------------------------------------------- writing a stage


def _written(
    stage: _Stage, key: str, macro: ChainConfig, section: Mapping[str, Any], layer: Layer
) -> tuple[dict[str, Any], dict[str, str]]:
    """A stage as a config has it, and the place of each of its keys."""
    path = f"{key}.path" if "path" in section else f"{key}.networks"
    values: dict[str, Any] = {"student": section["networks"][stage.network], "losses": [{"name": "ce"}]}
    origins = {"": (path, path), "student": (f"{key}.networks.{stage.network}",) * 2}
    if stage.terms:
        values["losses"] = _with_rest([term for _, term in stage.terms], key)
        for at, (number, _) in enumerate(stage.terms):
            origins[f"losses.{at}"] = (f"{key}.losses.{number}", f"{key}.losses.{_id(section['losses'][number])}")
    if stage.teachers:
        selected = "" if macro.selector == "last" else f"@{macro.selector}"
        cache = {} if macro.cache is False else {"cache": section["cache"]}
        values["teachers"] = {role: {"from": f"{name}{selected}"} | cache for role, name in stage.teachers.items()}
        for role in stage.teachers:
            origins[f"teachers.{role}.from"] = (f"{key}.selector",) * 2 if selected else (path, path)
            if cache:
                origins[f"teachers.{role}.cache"] = (f"{key}.cache",) * 2
    if stage.drop:
        values["drop"] = stage.drop
        origins["drop"] = (f"{key}.drop",) * 2
    return values, _places(f"stages.{stage.name}", origins, layer.sources)


def _places(at: str, origins: Mapping[str, tuple[str, str]], sources: Mapping[str, str]) -> dict[str, str]:
    """Places of expanded keys: where the macro's key stands, and in brackets which it is."""
    found = {}
    for part, (key, shown) in origins.items():
        to = f"{at}.{part}" if part else at
        around = key
        while around not in sources and "." in around:
            around = around.rpartition(".")[0]
        found[to] = f"{sources.get(around, 'default')} ({shown})"
        if part:
            found |= {f"{to}{k[len(key) :]}": f"{v} ({shown})" for k, v in sources.items() if k.startswith(f"{key}.")}
    return found


def _with_rest(terms: Terms, key: str) -> Terms:
    """Terms with `weight: rest` as arithmetic over the others' weights."""
    resting = [term for term in terms if term.get("weight") == REST]
    if not resting:
        return terms
    at = f"{key}.losses.{_id(resting[0])}.weight"
    if len(resting) > 1:
        raise KeyedError(at, f"only one term takes the rest, not {' and '.join(map(_id, resting))}")
    weights = [term.get("weight", 1.0) for term in terms if term is not resting[0]]
    for weight in weights:
        _refuse_a_schedule(at, weight, "the rest is left by")
    text = " - ".join(["1", *(f"({weight})" for weight in weights)])
    return [term | {"weight": text} if term is resting[0] else term for term in terms]


def _over(stages: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The config's own stages as they lie over the expanded ones: terms named by a mapping are set one by one."""
    plain: dict[str, Any] = {}
    dotted: dict[str, Any] = {}
    for name, stage in stages.items():
        if name not in made or not isinstance(stage, dict):
            plain[name] = stage
            continue
        terms = stage.get("losses")
        if isinstance(terms, dict):
            dotted |= {f"stages.{name}.losses.{key}": value for key, value in flattened(terms)}
        kept = {key: value for key, value in stage.items() if key != "losses" or not isinstance(terms, dict)}
        plain |= {name: kept} if kept else {}
    return ({"stages": plain} if plain else {}) | dotted


# --------------------------------------------------------------------------- pieces


def _check_path(key: str, macro: ChainConfig, stages: Any) -> None:
    at, path = f"{key}.path", macro.names()
    if len(path) < 2:
        raise KeyedError(f"{key}.networks", "a path has at least two networks: one that teaches, one that learns")
    for number, name in enumerate(path):
        own = number == 0 and isinstance(stages, dict) and name in stages
        if name not in macro.networks and not own:
            also = "" if number else ", nor a stage of this config"
            raise KeyedError(at, f"{name} is not in {key}.networks{also}{hint(name, macro.networks)}")
        if path.count(name) > 1:
            raise KeyedError(at, f"{name} is named twice; give its second training a network of another name")


def _listens(term: Mapping[str, Any], own: Sequence[Path]) -> bool:
    """Whether a term hears a teacher; of a loss that does not exist the check of terms tells."""
    name = term["name"]
    return (is_own(name) or name in plugins.available("losses")) and plugins.needs_teacher(name, own)


def _refuse_a_teacher(key: str, term: Mapping[str, Any]) -> None:
    if term.get("teacher") is not None:
        raise KeyedError(f"{key}.losses.{_id(term)}.teacher", "the path says who teaches; leave it out")


def _refuse_a_schedule(at: str, weight: Any, what: str) -> None:
    if isinstance(weight, dict):
        raise KeyedError(at, f"{what} numbers and arithmetic, not schedules such as {weight}")


def _id(term: Mapping[str, Any]) -> str:
    return called(term)
