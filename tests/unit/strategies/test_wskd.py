"""Two updates a batch: the second on what the teacher gets wrong, and none where it is right everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdscale.engines.ddp import DdpEngine
from kdscale.errors import ConfigError
from tests.unit.strategies.wise import STEPS, Wrong, engine_of, meter_of, rows_of, state_of, train, wskd
from tests.unit.train.made_up import batch

SOME = rows_of(s0=[1, 6], s2=[0], s5=[2, 3, 4], s11=[7])


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def counted(engine: DdpEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each update."""
    updates: list[int] = []
    step: Callable[..., Any] = engine._optimizer.step

    def counting(*args: Any, **kwargs: Any) -> Any:
        updates.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(engine._optimizer, "step", counting)
    return updates


OPTIONS: list[dict[str, Any]] = [{}, {"nesterov": True, "ema": 0.9}, {"optimizer": "adamw", "lr": 0.01}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_teacher_that_is_never_wrong_gives_plain_distillation_bit_for_bit(options: dict[str, Any]) -> None:
    twice, once = engine_of(wskd(), **options), engine_of(wskd(passes=1), **options)
    for engine in (twice, once):
        train(engine, Wrong({}), range(STEPS))
    assert same(state_of(twice), state_of(once))
    assert any("optimizer" in name for name in state_of(twice))
    wrong = engine_of(wskd(), **options)
    train(wrong, Wrong(SOME), range(STEPS))
    assert not same(state_of(wrong), state_of(once))


def test_updates_are_the_batches_and_those_with_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(wskd())
    updates = counted(engine, monkeypatch)
    train(engine, Wrong(SOME), range(STEPS))
    assert len(updates) == STEPS + len(SOME)


@pytest.mark.parametrize("normalise", ["selected", "batch"])
def test_the_second_loss_is_that_of_the_wrong_samples(normalise: str) -> None:
    strategy, asked = wskd(mu=0.0, normalise=normalise), batch(0)
    found = strategy(asked, {"t": Wrong(SOME)(asked)}, "wise")
    logits = strategy.student(asked.images).logits[SOME[0]]
    ce = nn.functional.cross_entropy(logits, asked.labels[SOME[0]])
    torch.testing.assert_close(found.total, ce if normalise == "selected" else ce * len(SOME[0]) / 8)
    assert found.figures["picked/wise"] == len(SOME[0])


def test_samples_that_are_right_have_no_gradient() -> None:
    strategy, asked = wskd(), batch(0)
    strategy.student.eval()  # nor through the batch's statistics
    seen: list[Tensor] = []
    strategy.student.head.register_forward_hook(lambda module, given, out: (out.retain_grad(), seen.append(out))[-1])
    strategy(asked, {"t": Wrong(SOME)(asked)}, "wise").total.backward()
    gradient = seen[0].grad
    assert gradient is not None
    assert gradient.abs().sum(1).nonzero()[:, 0].tolist() == SOME[0]


def test_a_pass_without_a_sample_has_a_loss_of_zero_and_a_gradient_of_zero() -> None:
    """As a rank without one has, whose neighbour has some."""
    strategy, asked = wskd(), batch(1)
    losses = strategy(asked, {"t": Wrong(SOME)(asked)}, "wise")
    losses.total.backward()
    assert losses.total == 0
    assert all(p.grad is not None and not p.grad.any() for p in strategy.parameters())


@pytest.mark.parametrize("fixed", [[], ["wise"]], ids=str)
def test_the_second_pass_may_leave_batch_norms_statistics_alone(fixed: list[str]) -> None:
    strategy, asked = wskd(fixed_bn=fixed), batch(0)
    answers, norm = {"t": Wrong(SOME)(asked)}, strategy.student.norm
    for pass_, moves in (("general", True), ("wise", not fixed)):
        before = norm.running_mean.clone()
        strategy(asked, answers, pass_).total.backward()
        assert bool((norm.running_mean != before).any()) == moves
        assert norm.training


def test_statistics_are_fixed_in_passes_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"options.fixed_bn: wse is no pass of this stage \(it has general, wise\)"):
        wskd(fixed_bn=["wse"])


def test_how_many_were_picked_is_a_figure() -> None:
    engine = engine_of(wskd())
    meter = meter_of(engine.unwrapped)
    train(engine, Wrong(SOME), range(4), meter)
    found = meter.read()
    assert found["train/picked/wise"] == 3 / 4
    assert found["train/term/ce_wise"] > 0
    train(engine, Wrong({}), range(4, 8), meter)
    found = meter.read()
    assert found["train/picked/wise"] == found["train/term/ce_wise"] == 0


def test_a_pass_of_its_own_is_left_out_as_a_whole() -> None:
    strategy = wskd()
    strategy.passes = ("wise",)
    engine = engine_of(strategy)
    before = {name: value.clone() for name, value in state_of(engine).items()}
    train(engine, Wrong({}), range(3))
    assert same(state_of(engine), before)


def test_a_resume_goes_on_bitwise(tmp_path: Path) -> None:
    calm, first, second = (engine_of(wskd(), ema=0.9) for _ in range(3))
    train(calm, Wrong(SOME), range(STEPS))
    train(first, Wrong(SOME), range(6))
    first.save(tmp_path)
    second.load(tmp_path)
    train(second, Wrong(SOME), range(6, STEPS))
    assert same(state_of(second), state_of(calm))


def test_only_passes_that_may_be_empty_have_the_figure() -> None:
    assert [*wskd().figures] == ["picked/wise"]
    assert [*wskd(passes=1).figures] == []


def test_a_pass_that_is_left_out_undoes_its_own_touch_alone() -> None:
    ours, only = engine_of(wskd(), on_nonfinite="skip"), engine_of(wskd(passes=1))
    asked = batch(0)
    answers = {"t": Wrong(SOME)(asked)}
    for engine in (ours, only):
        with engine.micro(0):
            engine.update(engine.forward(asked, answers, "general").total)
    ours.update(ours.forward(asked, answers, "wise").total * float("nan"))
    assert ours.left_out
    assert same(state_of(ours), state_of(only))
