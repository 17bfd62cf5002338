"""Pipelines that come to plain distillation, as their configs expand, trained on made-up batches."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kdscale import ranks
from kdscale.api import Batch, DatasetInfo
from kdscale.config.load import load, parse_reference
from kdscale.config.schema import StageSpec
from kdscale.engines.ddp import DdpEngine
from kdscale.pipeline.assemble import Assembled, Parent, assemble
from kdscale.teachers.network import NetworkTeacher
from kdscale.train.loop import train_step
from kdscale.train.metrics import Meter

__all__ = ["CONFIGS", "REDUCTIONS", "compare", "drops", "gradient", "specs", "trained"]

INFO = DatasetInfo(5, 1, 12, 100, 10, (0.5,), (0.25,), tuple("abcde"))
STEPS, COUNT = 20, 8
NETWORKS = """
  networks:
    teacher: {model: resnet_cifar, depth: 14, widths: [4, 8, 8]}
    young: {model: resnet_cifar, depth: 8, widths: [4, 4, 8]}
    student: {model: resnet_cifar, depth: 8, widths: [4, 8, 8]}
"""
CE, KD = "{name: ce, weight: 0.6}", "{name: kd, weight: 0.4, temperature: 3"
BLKD = """
stages:
  teacher: {{student: {{model: resnet_cifar, depth: 14, widths: [4, 8, 8]}}, losses: [{{name: ce}}]}}
  young: {{student: {{model: resnet_cifar, depth: 8, widths: [4, 4, 8]}}, losses: [{{name: ce}}]}}
  student:
    student: {{model: resnet_cifar, depth: 8, widths: [4, 8, 8]}}
    teachers: {{{role}: {{from: {source}}}}}
    losses: [{ce}, {kd}}}]
"""
GROWN = f"""
params: {{lam: %s, gam: %s}}
grow:{NETWORKS}
  losses:
    - {{name: ce, weight: rest}}
    - {{name: kd, id: old, teacher: teacher, weight: lam, temperature: 3}}
    - {{name: kd, id: new, teacher: previous, weight: gam, temperature: 3}}
"""
CONFIGS = {
    "blkd": BLKD.format(role="t", source="teacher", ce=CE, kd=KD),
    "blkd of young": BLKD.format(role="t", source="young", ce=CE, kd=KD),
    "blkd of best": BLKD.format(role="teacher", source="teacher@best", ce=CE, kd=KD),
    "dekd": BLKD.format(role="defective", source="teacher@best", ce=CE, kd=KD),
    "takd": f"chain:{NETWORKS}\n  path: [teacher, student]\n  losses: [{CE}, {KD}}}]\n",
    "dgkd": f"dense:{NETWORKS}\n  path: [teacher, student]\n  losses: [{CE}, {KD}}}]\n",
    "gskd gam 0": GROWN % (0.4, 0),
    "gskd lam 0": GROWN % (0, 0.4),
    "gskd": GROWN % (0.3, 0.1),
    "gskd of the teacher alone": GROWN % (0.3, 0.1) + "stages: {student: {teachers: {previous: {from: teacher}}}}\n",
    "stochastic dgkd": f"dense:{NETWORKS}\n  losses: [{KD}}}]\n  drop: 1\n",
}  # fmt: skip
REDUCTIONS = {
    "takd": "blkd", "dgkd": "blkd", "gskd gam 0": "blkd", "gskd lam 0": "blkd of young", "dekd": "blkd of best",
}  # fmt: skip
"""To which plain distillation each comes."""


@cache
def specs(name: str) -> dict[str, StageSpec]:
    """The stages of a config, by name."""
    shared = "data: {name: synthetic, val_fraction: 0.1}\ntrain: {batch_size: 8, lr: 0.05, precision: fp32}\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_text(shared + CONFIGS[name])
        return load(path).trials[0].stages


def made(name: str) -> tuple[Assembled, list[NetworkTeacher]]:
    """The student's strategy and its teachers, whose weights are those that their seeds draw."""
    stages = specs(name)
    spec = stages["student"]
    parents = {role: Parent(stages[parse_reference(str(ref.from_))[0]], INFO) for role, ref in spec.teachers.items()}
    found = assemble(spec, INFO, parents, total_steps=STEPS, train_rows=100)
    found.strategy.train()
    device = torch.device("cpu")
    return found, [NetworkTeacher(r, n, device=device, precision="fp32") for r, n in found.teachers.items()]


def batch(step: int) -> Batch:
    """This rank's share of a step."""
    rng = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (COUNT, 1, 12, 12), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, 5, (COUNT,), generator=rng)
    whole = Batch(images, labels, torch.arange(COUNT), view=0, step=step)
    return whole.split(ranks.world())[ranks.rank()]


@cache
def trained(name: str) -> dict[str, Tensor]:
    """The student after so many steps of training, behind DDP where there are several ranks."""
    found, teachers = made(name)
    engine = DdpEngine(found.strategy, specs(name)["student"].train, steps_per_epoch=STEPS)
    meter = Meter([term.id for term in specs(name)["student"].terms], torch.device("cpu"))
    for step in range(STEPS):
        train_step(engine, teachers, batch(step), 1, meter)
        engine.end_step(step)
    return found.network.state_dict()


def gradient(name: str) -> dict[str, Tensor]:
    """Of the first step, by the student's parameters."""
    found, teachers = made(name)
    first = batch(0)
    found.strategy(first, {teacher.name: teacher(first) for teacher in teachers}, "main").total.backward()
    return {key: p.grad for key, p in found.network.named_parameters() if p.grad is not None}


def compare() -> None:
    """Each reduction gives the very weights of plain distillation, and what is none does not."""
    for one, other in REDUCTIONS.items():
        mine, plain = trained(one), trained(other)
        assert mine.keys() == plain.keys()
        assert all(torch.equal(mine[name], plain[name]) for name in plain), f"{one} is not {other}"
    for one, other in (("gskd", "blkd"), ("blkd of young", "blkd")):
        assert not all(torch.equal(trained(one)[name], trained(other)[name]) for name in trained(one)), (one, other)


def drops() -> None:
    """Every rank leaves out the same guide at each step, and not always the same one."""
    found, teachers = made("stochastic dgkd")
    weights = []
    for step in range(STEPS):
        mine = batch(step)
        taught = {teacher.name: teacher(mine) for teacher in teachers}
        weights.append({part.id: part.weight for part in found.strategy.weighted(mine, taught, "main")})
    assert all(sorted(step.values()) == [0, 0.4] for step in weights), weights
    assert len({str(step) for step in weights}) == 2
    assert all(theirs == weights for theirs in ranks.gather_objects(weights))
