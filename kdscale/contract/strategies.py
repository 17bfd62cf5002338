"""What every strategy promises, kdscale's own and a user's: on a small stage with a teacher of the student's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdscale.api import Batch, DatasetInfo, Losses, Outputs, Strategy
from kdscale.config.schema import PluginsConfig, StageSpec
from kdscale.contract.checks import Broken, Check
from kdscale.contract.repeats import require_no_draws
from kdscale.engines.ddp import DdpEngine
from kdscale.nn.build import build_network
from kdscale.pipeline.assemble import Assembled, Parent, assemble, dry_backward
from kdscale.pipeline.freezing import freeze, keep_frozen_in_eval
from kdscale.pipeline.pixels import answers

__all__ = ["STRATEGY_CHECKS", "StrategySubject"]

INFO = DatasetInfo(5, 1, 16, 100, 10, (0.5,), (0.25,), tuple("abcde"))
TEACHER = {"model": "resnet_cifar", "depth": 8}
STAGE: Mapping[str, Any] = {
    "name": "stage", "student": {"model": "resnet_cifar", "depth": 8, "widths": [4, 8, 16]},
    "teachers": {"teacher": {"from": "teacher"}},
    "passes": {"main": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}]},
    "train": {"epochs": 1, "precision": "fp32", "lr": 0.05},
}  # fmt: skip
"""A stage as most are; what a strategy is held to."""
SAMPLES, STEPS_PER_EPOCH = 6, 10


@dataclass(frozen=True)
class StrategySubject:
    """A strategy with options, and the stage that it runs."""

    cls: type[Strategy]
    file: Path
    name: str
    """As a config names it."""
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    options: dict[str, Any] = field(default_factory=dict)
    stage: Mapping[str, Any] = field(default_factory=dict)
    """Over STAGE, for one that needs a stage of its own."""
    trained: tuple[str, ...] = ("head",)
    """Parts of the student that train where the others are frozen."""

    @property
    def spec(self) -> StageSpec:
        """Of its stage."""
        own = {"strategy": self.name, "options": self.options, "plugins": self.plugins.model_dump()}
        return StageSpec.model_validate({**STAGE, **self.stage, **own})

    def build(self, train_only: tuple[str, ...] | None = None) -> Assembled:
        """Its stage, assembled, with what does not train frozen: as training builds it."""
        parent = Parent(StageSpec.model_validate({"name": "teacher", "student": TEACHER}), INFO)
        parents = {role: parent for role in self.spec.teachers}
        only = list(train_only) if train_only else None

        def fresh() -> Assembled:
            return assemble(self.spec, INFO, parents, total_steps=STEPS_PER_EPOCH, train_rows=INFO.train_rows)

        rehearsed = fresh()
        freeze(rehearsed.strategy, rehearsed.network, [], only)
        silent, _ = dry_backward(rehearsed, INFO, INFO.size, "stages.stage")
        assembled = fresh()
        freeze(assembled.strategy, assembled.network, silent, only)
        assembled.strategy.train()
        keep_frozen_in_eval(assembled.strategy)
        return assembled


def _batch(step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (SAMPLES, INFO.channels, INFO.size, INFO.size), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, INFO.classes, (SAMPLES,), generator=rng)
    return Batch(images, labels, torch.arange(SAMPLES) + SAMPLES * step, view=0, step=step)


def _steps(assembled: Assembled, spec: StageSpec, count: int = 2) -> list[dict[str, Losses]]:
    """Train some steps as the loop does."""
    engine = DdpEngine(
        assembled.strategy, spec.train, steps_per_epoch=STEPS_PER_EPOCH, own_rates=assembled.own_rates
    )  # fmt: skip
    found = []
    for step in range(count):
        batch, losses = _batch(step), {}
        taught = answers(assembled.teachers, batch.images)
        with engine.micro(0):
            idle = engine.idle(batch, taught)
            for pass_ in (name for name in engine.passes if name not in idle):
                losses[pass_] = engine.forward(batch, taught, pass_)
                engine.update(losses[pass_].total)
        engine.end_step(step)
        found.append(losses)
    return found


def _weights(assembled: Assembled) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in assembled.network.model.state_dict().items()}


def _builds(subject: StrategySubject) -> str:
    strategy = subject.build().strategy
    if not isinstance(getattr(strategy, "student", None), torch.nn.Module):
        raise Broken("has no module `student`", "say self.student = student in __init__")
    if not strategy.passes:
        raise Broken("has no pass", "passes is a tuple of names, ('main',) say")
    return f"passes: {', '.join(strategy.passes)}"


def _trains(subject: StrategySubject) -> str:
    assembled = subject.build()
    before = _weights(assembled)
    for losses in _steps(assembled, subject.spec):
        for pass_, found in losses.items():
            if found.total.shape != () or not bool(torch.isfinite(found.total)):
                raise Broken(
                    f"pass {pass_}: the total is {found.total.detach()}", "one finite number, to differentiate"
                )
            kept = [name for name, value in {**found.terms, **found.figures}.items() if value.requires_grad]
            if kept:
                raise Broken(f"pass {pass_}: {kept[0]} keeps its graph", "metrics are detached: value.detach()")
    after = _weights(assembled)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    if not changed:
        raise Broken("after two steps the student has not changed", "the total must depend on the student's parameters")
    return f"{len(changed)} of {len(before)} tensors of the student change"


def _exports(subject: StrategySubject) -> str:
    assembled = subject.build()
    _steps(assembled, subject.spec, 1)
    spec, own = subject.spec, set(_weights(assembled))
    bare = set(build_network(spec.student, INFO, INFO.size, plugins=spec.plugins).model.state_dict())
    if own != bare:
        other = sorted(own ^ bare)[0]
        raise Broken(f"the student's weights are not the model's: {other}", "parts of your own belong to the strategy")
    strategy = assembled.strategy.eval()
    with torch.no_grad():
        answered = strategy.evaluated()(_batch(0).images)
    if not isinstance(answered, Outputs) or answered.logits.shape != (SAMPLES, INFO.classes):
        raise Broken("evaluated() does not answer with Outputs of (B, classes)", "leave it out: it is the student")
    inside = {id(p) for p in strategy.parameters()}
    for name, teacher in assembled.teachers.items():
        if inside & {id(p) for p in teacher.parameters()}:
            raise Broken(
                f"{name} is a part of it", "a teacher is no attribute of a strategy: it would be trained and saved"
            )
    beside = len(inside) - len(list(strategy.student.parameters()))
    return f"{beside} auxiliary parameters stay behind" if beside else ""


def _frozen(subject: StrategySubject) -> None:
    assembled = subject.build(subject.trained)
    before = _weights(assembled)
    _steps(assembled, subject.spec)
    after = _weights(assembled)
    parts = tuple(f"{part}." for part in subject.trained)
    moved = [n for n in before if not n.startswith(parts) and not torch.equal(before[n], after[n])]
    if moved:
        said = f"train_only: [{', '.join(subject.trained)}]: {moved[0]} changes all the same"
        raise Broken(said, "write to no parameter, and call no train() on the student: frozen parts are in eval")


def _teachers(subject: StrategySubject) -> None:
    assembled = subject.build()
    before = {name: [t.clone() for t in n.state_dict().values()] for name, n in assembled.teachers.items()}
    _steps(assembled, subject.spec)
    for name, network in assembled.teachers.items():
        pairs = zip(before[name], network.state_dict().values(), strict=True)
        if not all(torch.equal(first, last) for first, last in pairs):
            raise Broken(f"{name} changes while the student trains", "ask teachers in eval, under torch.no_grad()")


def _repeats(subject: StrategySubject) -> None:
    runs = []
    for seed in (1, 2):
        assembled = subject.build()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _steps(assembled, subject.spec)
        runs.append(_weights(assembled))
    other = [name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])]
    if other:
        raise Broken(f"two runs differ after two steps: {other[0]}", "draw by (seed, step, name): kdscale.draws")


def _resumes(subject: StrategySubject) -> None:
    whole = subject.build()
    _steps(whole, subject.spec, 1)
    again = subject.build()
    again.strategy.load_state_dict(whole.strategy.state_dict())
    batch = _batch(5)
    totals = [_totals(one, batch) for one in (whole, again)]
    if totals[0] != totals[1]:
        raise Broken(
            "after a resume it goes on otherwise", "what it remembers belongs in parameters or register_buffer"
        )


def _totals(assembled: Assembled, batch: Batch) -> list[float]:
    taught = answers(assembled.teachers, batch.images)
    strategy = assembled.strategy
    return [strategy(batch, taught, pass_).total.item() for pass_ in strategy.passes]


def _draws(subject: StrategySubject) -> None:
    assembled = subject.build()
    assembled.strategy.eval()
    run: Callable[[], object] = lambda: _totals(assembled, _batch(0))  # noqa: E731
    require_no_draws(run, subject.file, subject.cls.__name__)


STRATEGY_CHECKS: tuple[Check[StrategySubject], ...] = (
    Check("builds, with its passes", _builds, first=True),
    Check("two steps train the student", _trains),
    Check("exports a student without auxiliary parameters", _exports),
    Check("frozen parts stay frozen", _frozen),
    Check("teachers stay as they are", _teachers),
    Check("two runs agree bit for bit", _repeats),
    Check("its state_dict holds all that it remembers", _resumes),
    Check("draws nothing from generators that nobody seeds", _draws),
)
