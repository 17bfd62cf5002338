from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Strategy
from kdscale.config.schema import TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.engines.torch_engine import MOST_LEFT_OUT
from kdscale.errors import CheckpointMismatch, NonFiniteLoss
from kdscale.nn.precision import autocast_of
from kdscale.optim import OwnRate, learning_rate
from tests.unit.train.made_up import Convolutional, Linear, batch, distillation, strategy

STEPS = 10


def config(**options: object) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 1, "batch_size": 8, "lr": 0.1, "precision": "fp32"} | options)


def engine(of: Strategy, **options: object) -> DdpEngine:
    return DdpEngine(of, config(**options), steps_per_epoch=STEPS)


def train(on: DdpEngine, steps: range, accumulation: int = 1) -> None:
    for step in steps:
        asked = batch(step)
        for index, part in enumerate(asked.split(accumulation)):
            with on.micro(index):
                for pass_ in on.passes:
                    on.update(on.forward(part, {}, pass_).total)
        on.end_step(step)


def values(of: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in of.state_dict().items()}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def in_fp64(make: Callable[[], nn.Module], passes: int = 1) -> Strategy:
    return strategy(seeded(make).double(), passes).double()


def by_hand(student: nn.Module, optimizer: torch.optim.Optimizer, steps: int, clip: float | None = None) -> None:
    """What a tutorial would write."""
    rate = learning_rate(config(), STEPS)
    for step in range(steps):
        asked = batch(step)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(asked.images).logits, asked.labels).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(student.parameters(), clip)
        optimizer.step()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# --------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("named", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_what_looks_at_a_stage_can_compute_as_it_does(named: str, dtype: torch.dtype) -> None:
    with autocast_of(named, torch.device("cpu")):
        assert nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype is dtype
    assert nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype is torch.float32


# --------------------------------------------------------------------------- the update


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_updates_are_those_of_plain_torch(optimizer: str, clip: float | None) -> None:
    ours, plain = in_fp64(Convolutional), seeded(Convolutional).double()
    train(engine(ours, optimizer=optimizer, grad_clip=clip, nesterov=True), range(5))
    made = (
        torch.optim.AdamW(plain.parameters(), weight_decay=5e-4)
        if optimizer == "adamw"
        else torch.optim.SGD(plain.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    )
    by_hand(plain, made, 5, clip)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.student.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_clipping_bounds_the_update() -> None:
    ours = in_fp64(Linear)
    before = values(ours)
    train(engine(ours, grad_clip=0.01, momentum=0, weight_decay=0, schedule="constant"), range(1))
    moved = torch.cat([(value - before[name]).flatten() for name, value in values(ours).items()]).norm()
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_accumulation_equals_the_whole_batch() -> None:
    whole, parts = in_fp64(Linear), in_fp64(Linear)
    train(engine(whole), range(5))
    train(engine(parts, accumulation=4), range(5), accumulation=4)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=1e-13)


def test_each_pass_updates() -> None:
    twice, once = in_fp64(Linear, passes=2), in_fp64(Linear)
    train(engine(twice, momentum=0, schedule="constant"), range(1))
    on = engine(once, momentum=0, schedule="constant")
    for _ in range(2):
        with on.micro(0):
            on.update(on.forward(batch(0), {}, "pass0").total)
    assert same(values(twice.student), values(once.student))


def test_frozen_parameters_stay_and_own_rates_scale() -> None:
    ours = in_fp64(Convolutional)
    for parameter in ours.student.conv.parameters():
        parameter.requires_grad_(False)
    before = values(ours.student)
    options = config(momentum=0, weight_decay=0, schedule="constant")
    on = DdpEngine(ours, options, steps_per_epoch=STEPS, own_rates={"student.head": OwnRate(0.5)})
    loss = on.forward(batch(0), {}, "pass0").total
    grads = torch.autograd.grad(loss, [ours.student.head.bias, ours.student.norm.bias], retain_graph=True)
    on.update(loss)
    after = values(ours.student)
    assert torch.equal(after["conv.weight"], before["conv.weight"])
    torch.testing.assert_close(before["head.bias"] - after["head.bias"], 0.05 * grads[0])
    torch.testing.assert_close(before["norm.bias"] - after["norm.bias"], 0.1 * grads[1])


def test_the_rate_is_that_of_the_coming_step() -> None:
    on = engine(in_fp64(Linear), schedule="cosine")
    rate = learning_rate(config(), STEPS)
    found = []
    for step in range(4):
        found.append(on.lr)
        train(on, range(step, step + 1))
    assert found == [rate(step) for step in range(4)]


# --------------------------------------------------------------------------- EMA


def test_ema_is_the_running_average_after_each_step() -> None:
    ours = in_fp64(Linear)
    on = engine(ours, ema=0.9)
    expected = ours.student.head.weight.detach().clone()
    for step in range(4):
        train(on, range(step, step + 1))
        expected = 0.9 * expected + 0.1 * ours.student.head.weight.detach()
    live = values(ours)
    with on.averaged():
        torch.testing.assert_close(ours.student.head.weight.detach(), expected, rtol=1e-12, atol=0)
    assert same(values(ours), live)
    with pytest.raises(KeyError), on.averaged():
        raise KeyError
    assert same(values(ours), live)


def test_without_ema_nothing_is_swapped() -> None:
    ours = in_fp64(Linear)
    on = engine(ours)
    train(on, range(1))
    live = values(ours)
    with on.averaged():
        assert same(values(ours), live)


# --------------------------------------------------------------------------- state


CASES = {
    "sgd": {},
    "sgd without momentum": {"momentum": 0},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "ema": {"ema": 0.99},
    "adamw with all": {"optimizer": "adamw", "lr": 0.01, "ema": 0.9, "grad_clip": 0.1, "warmup_epochs": 0.5},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_it_goes_on_bitwise(case: str, layout: torch.memory_format, tmp_path: Path) -> None:
    def make() -> tuple[Strategy, DdpEngine]:
        ours = strategy(seeded(Convolutional).to(memory_format=layout))  # type: ignore[call-overload]
        return ours, engine(ours, **CASES[case])

    (calm, through), (before, first), (after, second) = make(), make(), make()
    train(through, range(6))
    train(first, range(3))
    first.save(tmp_path)
    train(second, range(2))  # whatever it held is replaced
    second.load(tmp_path)
    assert same(values(after), values(before))
    assert second.lr == first.lr
    train(second, range(3, 6))
    assert same(values(after), values(calm))
    with through.averaged(), second.averaged():
        assert same(values(after), values(calm))


def test_fp16_scales_losses_and_lowers_the_scale_where_gradients_overflow(tmp_path: Path) -> None:
    ours = strategy(seeded(Convolutional))
    on = engine(ours, precision="fp16")
    before = values(ours.student)
    on.update(on.forward(batch(0), {}, "pass0").total * 1e30)
    assert torch.equal(ours.student.head.weight.detach(), before["head.weight"])
    on.save(tmp_path)
    other = engine(strategy(seeded(Convolutional)), precision="fp16")
    other.load(tmp_path)
    assert other._scaler.get_scale() == on._scaler.get_scale() == 32768.0


def test_what_the_optimizer_has_not_touched_is_no_state(tmp_path: Path) -> None:
    """A checkpoint of step 0 sets a running engine back to no momentum at all."""
    ours, fresh = strategy(seeded(Linear)), strategy(seeded(Linear))
    first, second = engine(fresh), engine(ours)
    first.save(tmp_path)
    train(second, range(3))
    second.load(tmp_path)
    train(first, range(2))
    train(second, range(2))
    assert same(values(ours), values(fresh))


def test_another_strategys_checkpoint_is_refused(tmp_path: Path) -> None:
    engine(strategy(seeded(Linear))).save(tmp_path)
    with pytest.raises(CheckpointMismatch, match=r"not this strategy's: .*conv"):
        engine(strategy(seeded(Convolutional))).load(tmp_path)


def test_buffers_of_another_world_are_averaged(tmp_path: Path) -> None:
    ours = strategy(seeded(Convolutional))
    on = engine(ours)
    train(on, range(2))
    on.save(tmp_path)
    mine = load_file(tmp_path / "buffers_rank00000.safetensors")
    theirs = {name: value + 1 if value.dtype.is_floating_point else value for name, value in mine.items()}
    save_file(theirs, tmp_path / "buffers_rank00001.safetensors")
    before = copy.deepcopy(ours.student.norm)
    on.load(tmp_path)
    torch.testing.assert_close(ours.student.norm.running_mean, before.running_mean + 0.5)
    assert torch.equal(ours.student.norm.num_batches_tracked, before.num_batches_tracked)


# --------------------------------------------------------------------------- precision


class SeesItsDtype(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear()
        self.seen: list[torch.dtype] = []

    def forward(self, images: Tensor) -> Outputs:
        logits = self.linear.head(images.flatten(1) / 255)
        self.seen.append(logits.dtype)
        return Outputs(logits)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_networks_run_in_the_precision_and_losses_in_fp32(precision: str, dtype: torch.dtype) -> None:
    student = SeesItsDtype()
    asked: Batch = batch(0)
    taught = {"big": Outputs(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))}
    losses = engine(distillation(student), precision=precision).forward(asked, taught, "main")
    assert student.seen == [dtype]
    assert losses.total.dtype == torch.float32
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in losses.terms.values())


def spoiled(on: DdpEngine, step: int, bad: tuple[int, ...]) -> None:
    """Train a step of which some passes have no finite gradient."""
    with on.micro(0):
        for index, pass_ in enumerate(on.passes):
            total = on.forward(batch(step), {}, pass_).total
            on.update(total * float("nan") if index in bad else total)
    on.end_step(step)


@pytest.mark.parametrize("bad", [(0,), (1,), (0, 1)])
def test_a_pass_that_is_never_finite_ends_the_stage_whatever_the_others_are(bad: tuple[int, ...]) -> None:
    on = engine(strategy(seeded(Linear), 2), on_nonfinite="skip")
    for step in range(MOST_LEFT_OUT):
        spoiled(on, step, bad)
    with pytest.raises(NonFiniteLoss, match=rf"not finite in {MOST_LEFT_OUT + 1} steps in a row"):
        spoiled(on, MOST_LEFT_OUT, bad)


def test_steps_left_out_now_and_then_end_nothing() -> None:
    on = engine(strategy(seeded(Linear), 1), on_nonfinite="skip")
    for step in range(3 * MOST_LEFT_OUT):
        spoiled(on, step, () if step % 3 == 0 else (0,))
