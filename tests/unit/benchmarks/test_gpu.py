"""benchmarks/gpu.py as far as a CPU goes; no figure of a GPU comes from here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.gpu import beside_bare, climb, copied, forward_flops, lines
from benchmarks.gpu_rungs import CASES, QUICK_CASES, RUNGS, Case, Rung, Step

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("case", "parameters", "gflop"),
    [(CASES[0], 11.22e6, 1.11), (CASES[1], 25.56e6, 8.18)],
    ids=["resnet18", "resnet50"],
)
def test_networks_are_those_of_the_papers(case: Case, parameters: float, gflop: float) -> None:
    """ResNet-50 has 25.557 million parameters and 4.09 billion multiplications and additions (torchvision's table)."""
    with torch.device("meta"):
        network: nn.Module = case.network(classes=case.classes)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=1e-3)
    assert forward_flops(case) == pytest.approx(gflop * 1e9, rel=5e-3)


def test_a_step_learns_and_a_cached_teacher_is_heard() -> None:
    (case,) = QUICK_CASES
    alone, taught = Step(case, Rung("alone"), CPU), Step(case, Rung("taught", cached=True), CPU)
    before = alone.network.state_dict()["head.weight"].clone()
    for step in (alone, taught):
        step.prepare()
        step()
    weights = [step.network.state_dict()["head.weight"] for step in (alone, taught)]
    assert not torch.equal(weights[0], before)
    assert not torch.equal(weights[0], weights[1])


def test_rungs_are_measured_and_one_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = QUICK_CASES
    monkeypatch.setattr(torch, "compile", lambda network: (_ for _ in ()).throw(RuntimeError("no compiler\nhere")))
    found = climb(case, 1, CPU, [RUNGS[0], Rung("compiled", compiled=True)])
    assert found["rungs"]["eager fp32"]["images_per_s"] > 0
    assert found["rungs"]["eager fp32"]["utilisation"] is None, "nobody told the peak of a CPU"
    assert found["failed"] == {"compiled": "RuntimeError: no compiler"}
    shown = "\n".join(lines(case, found | {"copies": copied(case, 1, CPU)}))
    assert "not run: RuntimeError: no compiler" in shown
    assert "as kdscale moves batches" in shown


def test_a_whole_stage_takes_turns_with_the_bare_loop() -> None:
    (ratio,) = beside_bare(1, 2, 16, 8, CPU)
    assert ratio > 0
