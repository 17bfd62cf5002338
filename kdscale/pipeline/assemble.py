"""From a stage's definition to its networks, terms and strategy; the same code for planning and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from kdscale import plugins
from kdscale.api import Batch, DatasetInfo, Loss, Modifier, PluginConfig, Shapes, Strategy, Term
from kdscale.config.schema import ModifierConfig, StageSpec, TermConfig
from kdscale.config.taps import Tap
from kdscale.draws import seed_of
from kdscale.errors import ConfigError, KDScaleError, ShapeError, TapError
from kdscale.nn.build import build_network
from kdscale.nn.network import Network
from kdscale.nn.schedules import weight_schedule
from kdscale.nn.sides import total
from kdscale.nn.stage_parts import StageParts
from kdscale.optim import OwnRate, own_rates
from kdscale.pipeline.drops import with_drops
from kdscale.pipeline.flops import CountFlops
from kdscale.pipeline.limits import refuse_accumulation, refuse_modifiers
from kdscale.pipeline.pixels import answers, ask_for_pixels
from kdscale.pipeline.tapped import blamed, wanted_taps
from kdscale.teachers.ensemble import Ensemble
from kdscale.teachers.virtual import VirtualTeacher

__all__ = [
    "Assembled",
    "Parent",
    "assemble",
    "dry_backward",
    "image_size",
    "own_network",
    "plugin_config",
    "teacher_network",
]


@dataclass(frozen=True)
class Parent:
    """A producing stage, as far as its network is concerned."""

    spec: StageSpec
    info: DatasetInfo
    """Of the data that it was trained on."""
    weights: Path | None = None
    """File to load; None builds it with fresh weights (for planning)."""


@dataclass(frozen=True)
class Assembled:
    """A stage's networks, connected."""

    network: Network
    strategy: Strategy
    teachers: dict[str, Network]
    ensembles: list[Ensemble]
    """Of those teachers."""
    virtual: list[VirtualTeacher]
    own_rates: dict[str, OwnRate]
    """Of terms that train with their own rate, by parameter name prefix."""
    heard: set[str | None]
    """Teachers that a term listens to, and members of ensembles: the others need no asking in training."""


def image_size(spec: StageSpec, info: DatasetInfo) -> int:
    """Pixels a side of the views that the loader yields."""
    return spec.data.size or info.size


def assemble(
    spec: StageSpec, info: DatasetInfo, parents: Mapping[str, Parent], *, total_steps: int, train_rows: int
) -> Assembled:
    """Build the student, the teachers' networks, the terms and the strategy.

    Initial weights are functions of (seed, part name): adding a term never changes the student's.

    Args:
        spec: the resolved stage.
        info: its data.
        parents: producing stages by teacher name.
        total_steps: for weights that follow a schedule.
        train_rows: for losses that remember rows.

    Raises:
        ConfigError, PluginError, TapError, ShapeError: with the key path in the stage.
    """
    size, every = image_size(spec, info), spec.terms
    only = next(iter(parents)) if len(parents) == 1 else None
    wanted = wanted_taps(every, only)
    wanted |= {role: ["pooled"] for role, ref in spec.teachers.items() if ref.cache is not None and ref.cache.pooled}
    with blamed(spec, None, only):
        network = build_network(spec.student, info, size, taps=wanted[None], seed=spec.seed, plugins=spec.plugins)
        student_shapes = network.tap_shapes(size)
    teachers, shapes = {}, {}
    for name, parent in parents.items():
        with blamed(spec, name, only):
            teachers[name] = teacher_network(parent, info, size, wanted.get(name, []))
            shapes[name] = teachers[name].tap_shapes(size)
    seen = _Seen(spec, info, wanted, student_shapes, shapes, teachers, total_steps, train_rows)
    passes = _passes(spec, seen)
    refuse_accumulation(spec, passes, f"stages.{spec.name}")
    ask_for_pixels(spec, network, teachers, every)
    fresh = partial(build_network, spec.student, info, size, seed=spec.seed, plugins=spec.plugins)
    stage = StageParts(teachers, spec.train, spec.seed, total_steps, size, lambda part: fresh(part=part))
    strategy = _strategy(spec, network, passes, stage)
    ensembles = [Ensemble(name, ref.shares, ref.of) for name, ref in spec.teachers.items() if ref.mean is not None]
    virtual = [
        VirtualTeacher(name, info.classes, ref.virtual)
        for name, ref in spec.teachers.items()
        if ref.virtual is not None
    ]
    heard = {term.teacher for terms in passes.values() for term in terms} | {m for e in ensembles for m in e.shares}
    return Assembled(network, strategy, teachers, ensembles, virtual, _own_rates(spec), heard)


def dry_backward(assembled: Assembled, info: DatasetInfo, size: int, where: str) -> tuple[list[str], int]:
    """Run forward and backward of every pass once on four made-up samples.

    Returns:
        Names of the strategy's parameters that receive no gradient: they are frozen before training. And the FLOPs of
        a step a sample, teachers aside; of ways that a step can go, their mean.

    Raises:
        ShapeError: a term fails on these networks, or returns neither (B,) nor ().
    """
    strategy, batch = assembled.strategy, _made_up(info, size)
    strategy.train()
    taught = answers(assembled.teachers, batch.images)
    taught |= {ensemble.name: ensemble(taught) for ensemble in assembled.ensembles}
    taught |= {teacher.name: teacher(batch) for teacher in assembled.virtual}
    flops = 0
    for pass_ in strategy.passes:
        try:
            counted = CountFlops()
            with counted:
                totals = strategy.rehearse(batch, taught, pass_)
                total(totals).backward()  # type: ignore[no-untyped-call]
            flops += counted.total // (len(totals) * len(batch.rows))
        except KDScaleError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ShapeError(f"{where}: pass {pass_} fails in a dry run: {error}") from error
    silent = [name for name, p in strategy.named_parameters() if p.requires_grad and p.grad is None]
    strategy.zero_grad(set_to_none=True)
    if len(silent) == len(list(strategy.parameters())):
        raise ConfigError(f"{where}: nothing trains: no parameter receives a gradient from its terms")
    return silent, flops


def plugin_config(
    cls: type[Loss] | type[Modifier] | type[Strategy], options: Mapping[str, object], where: str
) -> PluginConfig:
    """Validate a plug-in's options. Raises: ConfigError naming the key and the nearest valid one."""
    try:
        return cls.Config(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        near = get_close_matches(key, cls.Config.model_fields, 1)
        hint = f"; did you mean {near[0]}?" if near else f" (known: {', '.join(cls.Config.model_fields) or 'none'})"
        raise ConfigError(f"{where}.{key}: {first['msg']}{hint}") from error


# --------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Seen:
    """What terms are built from, and can listen to."""

    spec: StageSpec
    info: DatasetInfo
    wanted: dict[str | None, list[Tap]]
    student: list[tuple[int, ...]]
    teachers: dict[str, list[tuple[int, ...]]]
    networks: dict[str, Network]
    total_steps: int
    train_rows: int


def teacher_network(parent: Parent, info: DatasetInfo, size: int, taps: Sequence[Tap]) -> Network:
    """A producer's network: built for the data that it knows, shown a stage's views of `size` pixels a side."""
    spec = parent.spec
    return build_network(
        spec.student, parent.info, image_size(spec, parent.info), taps=taps, seed=spec.seed, snapshot=parent.weights,
        views=(info.channels, size), plugins=spec.plugins,
    )  # fmt: skip


def own_network(parent: Parent) -> Network:
    """A producer's network as it is evaluated: shown the images of its own data, without taps."""
    return teacher_network(parent, parent.info, image_size(parent.spec, parent.info), ())


def _term(term: TermConfig, where: str, seen: _Seen) -> Term:
    spec = seen.spec
    cls = plugins.load("losses", term.name, spec.plugins)
    options = term.options
    if term.name in ("ce", "pixel_ce") and spec.train.label_smoothing:
        options = {"label_smoothing": spec.train.label_smoothing, **options}
    config = plugin_config(cls, options, where)
    teacher = _teacher_of(term, cls, spec, where)
    student_taps = term.taps.student if term.taps else []
    teacher_taps = term.taps.teacher if term.taps else []
    if "features" in cls.needs and not student_taps:
        raise TapError(f"{where}: {term.name} compares features: set taps: {{student: [...], teacher: [...]}}")
    student_at = [seen.wanted[None].index(name) for name in student_taps]
    teacher_at = [seen.wanted[teacher].index(name) for name in teacher_taps]
    shapes = Shapes(
        classes=seen.info.classes,
        student=[seen.student[i] for i in student_at],
        teacher=[seen.teachers[teacher][i] for i in teacher_at] if teacher else [],
        train_rows=seen.train_rows,
        post_relu=all(seen.networks[teacher].post_relu(name) for name in teacher_taps) if teacher else True,
        temperature=cls.temperatures(config)[0],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("init", spec.seed, f"terms.{term.id}"))
        loss = cls(config, shapes)
        modifiers = [_modifier(m, shapes, where, spec) for m in term.modifiers]
    refuse_modifiers(modifiers, term, loss, spec, where)
    weight = weight_schedule(term.weight, seen.total_steps)
    return Term(term.id, loss, weight, teacher, modifiers, student_at, teacher_at, cls.temperatures(config))


def _passes(spec: StageSpec, seen: _Seen) -> dict[str, list[Term]]:
    passes = {}
    for pass_, terms in spec.passes.items():
        built = []
        for term in terms:
            at = f"stages.{spec.name}.{'losses' if pass_ == 'main' else f'passes.{pass_}'}.{term.id}"
            if term.teacher is not None and term.teacher not in spec.teachers:
                have = ", ".join(spec.teachers)
                raise ConfigError(f"{at}.teacher: {term.teacher} is no teacher of this stage ({have})")
            built.append(_term(term, at, seen))
        passes[pass_] = with_drops(built, spec.drop, spec.seed)
    return passes


def _strategy(spec: StageSpec, student: Network, passes: Mapping[str, Sequence[Term]], stage: StageParts) -> Strategy:
    cls: type[Strategy] = plugins.load("strategies", spec.strategy, spec.plugins)
    return cls.build(student, passes, plugin_config(cls, spec.options, f"stages.{spec.name}.options"), stage)


def _teacher_of(term: TermConfig, cls: type[Loss], spec: StageSpec, where: str) -> str | None:
    """A term's teacher; the only one when it names none."""
    modifiers = [plugins.load("modifiers", modifier.name, spec.plugins) for modifier in term.modifiers]
    if not any(part.needs_teacher for part in (cls, *modifiers)):
        return None
    if term.teacher is not None:
        return term.teacher
    if len(spec.teachers) != 1:
        have = ", ".join(spec.teachers) or "none"
        raise ConfigError(f"{where}: {term.name} needs a teacher: set teacher: NAME (this stage has: {have})")
    return next(iter(spec.teachers))


def _modifier(config: ModifierConfig, shapes: Shapes, where: str, spec: StageSpec) -> Modifier:
    cls = plugins.load("modifiers", config.name, spec.plugins)
    modifier: Modifier = cls(plugin_config(cls, config.options, f"{where}.modifiers.{config.name}"), shapes)
    return modifier


def _own_rates(spec: StageSpec) -> dict[str, OwnRate]:
    found: dict[str, OwnRate] = {}
    for term in spec.terms:
        found |= own_rates(term, plugins.load("losses", term.name, spec.plugins).undecayed)
    return found


def _made_up(info: DatasetInfo, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = (4, info.channels, size, size)
    images: Tensor = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.arange(4) % info.classes
    if info.per_pixel:
        labels = labels[:, None, None].repeat(1, size, size)
    return Batch(images, labels, torch.arange(4), view=0)
