from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.config.schema import TrainConfig
from kdscale.draws import uniform
from kdscale.engines.ddp import DdpEngine
from kdscale.errors import ConfigError, ShapeError, TapError
from kdscale.nn.weights import weights_hash
from kdscale.pipeline.assemble import Assembled, dry_backward
from kdscale.strategies.iakd import Interactive, student_schedule
from kdscale.teachers.network import NetworkTeacher
from tests.unit.strategies.mixtures import INFO, SMALL, STUDENT, TEACHER, WHOLE, mixture, noise

KD = {"main": [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}]}
TRAIN = TrainConfig(epochs=10, batch_size=8, precision="fp32", lr=0.05)
UNITS = ["stage1.0", "stage2.0", "stage3.0"]


def strategy_of(built: Assembled) -> Interactive:
    assert isinstance(built.strategy, Interactive)
    return built.strategy


def trained(built: Assembled, steps: range, train: TrainConfig = TRAIN, at: Path | None = None) -> DdpEngine:
    """Train over some steps, after what lies in a folder."""
    engine = DdpEngine(built.strategy.train(), train, steps_per_epoch=1)
    if at is not None:
        engine.load(at)
    teacher = NetworkTeacher("t", built.teachers["t"], device=torch.device("cpu"), precision="fp32")
    for step in steps:
        with engine.micro(0):
            batch = noise(step)
            with torch.no_grad():
                taught = {"t": teacher(batch)}
            engine.update(engine.forward(batch, taught, "main").total)
        engine.end_step(step)
    return engine


def state(built: Assembled) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in built.strategy.state_dict().items()}


def momenta(engine: DdpEngine) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in engine.unwrapped.named_parameters()}
    kept = {names[p]: _own_state(engine, p) for p in engine._optimizer.state}
    return {f"{name}.{key}": value for name, state in kept.items() for key, value in state.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --------------------------------------------------------------------------- the two ends


def test_with_p_student_0_and_everything_a_unit_it_is_the_teacher() -> None:
    built = mixture({"p_student": 0, "units": WHOLE})
    strategy = strategy_of(built).eval()
    assert len(strategy.replaced(3)) == len(WHOLE)
    answers = []
    built.network.register_forward_hook(lambda module, inputs, output: answers.append(output.logits))
    strategy(noise(3), {}, "main")
    assert torch.equal(answers[0], built.teachers["t"].eval()(noise(3).images).logits)
    assert not torch.equal(answers[0], built.network(noise(3).images).logits)


def test_with_p_student_1_and_a_kd_term_it_is_distillation_bit_for_bit() -> None:
    plain, ours = mixture(strategy="distill", passes=KD), mixture({"p_student": 1}, passes=KD)
    one, other = trained(plain, range(20)), trained(ours, range(20))
    assert equal(state(plain), state(ours))
    assert equal(momenta(one), momenta(other))


def test_with_p_student_1_it_is_training_on_labels_bit_for_bit() -> None:
    plain, ours = mixture(strategy="distill"), mixture({"p_student": 1})
    trained(plain, range(5)), trained(ours, range(5))
    assert equal(state(plain), state(ours))


# --------------------------------------------------------------------------- draws


def test_draws_have_the_rate_asked_for_and_do_not_know_of_each_other() -> None:
    strategy, steps = strategy_of(mixture({"p_student": 0.3}, total_steps=10**9)), 10_000
    away = [{unit.path for unit in strategy.replaced(step)} for step in range(steps)]
    own = torch.tensor([[path not in gone for path in UNITS] for gone in away], dtype=torch.float64)
    sigma = math.sqrt(0.3 * 0.7 / steps)
    assert ((own.mean(0) - 0.3).abs() < 3 * sigma).all()
    correlation = torch.corrcoef(own.T) - torch.eye(len(UNITS))
    assert (correlation.abs() < 4 / math.sqrt(steps)).all()


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_draw_is_a_function_of_seed_step_and_unit(seed: int, step: int) -> None:
    strategy = DRAWING
    strategy._seed = seed
    want = [path for path in UNITS if uniform("iakd", seed, step, path) >= 0.5]
    assert [unit.path for unit in strategy.replaced(step)] == want == [u.path for u in strategy.replaced(step)]


DRAWING = strategy_of(mixture({"p_student": 0.5}, total_steps=10**9))


# --------------------------------------------------------------------------- who is touched


def test_the_teacher_stays_as_it_is_and_is_no_part_of_what_trains() -> None:
    built = mixture({"p_student": 0.5}, passes=KD)
    before = weights_hash(built.teachers["t"].model)
    engine = trained(built, range(8))
    assert weights_hash(built.teachers["t"].model) == before
    assert all(p.grad is None and not p.requires_grad for p in built.teachers["t"].parameters())
    assert not any(m.training for m in built.teachers["t"].modules())
    plain = mixture(strategy="distill", passes=KD)
    assert state(built).keys() == state(plain).keys()
    assert sum(p.numel() for p in engine._parameters) == sum(p.numel() for p in plain.strategy.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_block_that_is_not_drawn_keeps_its_weights_statistics_and_momentum(optimizer: str) -> None:
    built = mixture({"p_student": 0.5}, total_steps=10**6)
    strategy = strategy_of(built)
    train = TrainConfig(epochs=10, batch_size=8, precision="fp32", lr=0.01, optimizer=optimizer)  # type: ignore[arg-type]
    engine = DdpEngine(strategy.train(), train, steps_per_epoch=1)
    seen = set()
    for step in range(12):
        before, moved = state(built), {p: _own_state(engine, p) for p in engine._parameters}
        with engine.micro(0):
            engine.update(engine.forward(noise(step), {}, "main").total)
        engine.end_step(step)
        away = tuple(f"student.model.{unit.path}." for unit in strategy.replaced(step))
        seen.add(len(away))
        for name, tensor in state(built).items():
            ran = not name.startswith(away)
            assert ran == (not torch.equal(tensor, before[name])) or "num_batches" in name, name
        for name, parameter in strategy.named_parameters():
            same = equal(_own_state(engine, parameter), moved[parameter])
            assert same == name.startswith(away), name
    assert len(seen) > 1


def _own_state(engine: DdpEngine, parameter: Tensor) -> dict[str, Tensor]:
    found = engine._optimizer.state.get(parameter, {})
    return {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}


def test_gradients_reach_the_students_first_block_through_the_teachers_second() -> None:
    built = mixture({"p_student": 1})
    strategy = strategy_of(built)
    second = [unit for unit in strategy._units if unit.path == "stage2.0"]
    [part] = strategy._mixed(second, noise(), {}, "main")
    part.value.backward()  # type: ignore[no-untyped-call]
    grads = {name: p.grad for name, p in built.network.model.named_parameters()}
    assert all(grads[n].abs().sum() > 0 for n in grads if n.startswith(("stage1.0.conv", "stem.0")))  # type: ignore[union-attr]
    assert all(grads[n] is None for n in grads if n.startswith("stage2.0."))


def test_the_students_own_blocks_are_back_even_after_a_failure() -> None:
    built = mixture({"p_student": 0})
    before = dict(built.network.model.named_modules())
    with pytest.raises(KeyError):
        built.strategy(noise(), {}, "no such pass")
    assert dict(built.network.model.named_modules()) == before


def test_a_resume_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = (mixture({"schedule": "linear", "p_student": 0.2}) for _ in range(3))
    one = trained(whole, range(10))
    half = trained(first, range(4))
    half.save(tmp_path)
    other = trained(second, range(4, 10), at=tmp_path)
    assert equal(state(whole), state(second))
    assert equal(momenta(one), momenta(other))


# --------------------------------------------------------------------------- schedule


def share(step: int, epochs: int = 100, **options: Any) -> float:
    train = TrainConfig(epochs=epochs, schedule="multistep", milestones=[0.5, 75])
    return student_schedule(Interactive.Config(**options), train, 10 * epochs)(step)


def test_the_schedules_are_those_described() -> None:
    assert share(0) == share(999) == 0.5
    assert share(0, schedule="linear") == 0.1
    assert share(500, schedule="linear") == pytest.approx(0.55)
    assert share(0, p_student=0.4, schedule="linear") == 0.4
    for mark in (0, 500, 750):
        assert share(mark, schedule="review") == 0.1
    for mark in (500, 750, 1000):
        assert 0.99 < share(mark - 1, schedule="review") < 1
    assert share(250, schedule="review", period_epochs=25) == 0.1
    assert share(499, schedule="review", period_epochs=25) > 0.99


@given(st.integers(0, 999), st.floats(0, 1))
def test_one_interval_of_review_is_the_line(step: int, first: float) -> None:
    line = share(step, schedule="linear", p_student=first)
    assert share(step, schedule="review", period_epochs=100, p_student=first) == line
    assert first <= line <= 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "review"])
def test_the_final_phase_is_the_students_alone(schedule: str) -> None:
    assert share(899, schedule=schedule, final_student_phase=10) < 1
    assert all(share(step, schedule=schedule, final_student_phase=10) == 1 for step in range(900, 1000))
    assert share(0, schedule=schedule, final_student_phase=10) == share(0, schedule=schedule)


def test_batch_norm_is_measured_anew_while_the_teacher_takes_part() -> None:
    strategy = strategy_of(mixture({"p_student": 0.5, "final_student_phase": 2, "recalibrate_batches": 3}))
    assert [strategy.recalibration(step) for step in (0, 1, 8, 9, 10)] == [0, 3, 3, 0, 0]
    assert strategy_of(mixture({"p_student": 1})).recalibration(5) == 0


# --------------------------------------------------------------------------- planning


def test_the_dry_run_freezes_nothing_whatever_is_drawn() -> None:
    for share in (0, 0.5, 1):
        wide = TEACHER | {"widths": [8, 8, 16]}
        built = mixture({"p_student": share}, teacher=wide)
        silent, _ = dry_backward(built, INFO, 16, "stages.s")
        assert silent == []


def test_figures_say_which_blocks_ran() -> None:
    strategy = strategy_of(mixture({"p_student": 0.5}))
    assert strategy.figures == ("p_student", *(f"student_ran/{path}" for path in UNITS))
    found = strategy(noise(3), {}, "main").figures
    away = {unit.path for unit in strategy.replaced(3)}
    assert {n: float(v) for n, v in found.items()} == {
        "p_student": 0.5, **{f"student_ran/{path}": float(path not in away) for path in UNITS},
    }  # fmt: skip


def test_a_teacher_that_no_term_listens_to_need_not_be_asked() -> None:
    assert "t" not in mixture({}).heard
    assert "t" in mixture({}, passes=KD).heard


BAD: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({"p_student": 2}, {}, ConfigError, r"stages\.s\.options\.p_student"),
    ({"p_studnt": 1}, {}, ConfigError, r"stages\.s\.options\.p_studnt: .*did you mean p_student\?"),
    ({"teacher": "u"}, {}, ConfigError, r"options\.teacher: u is no network .*there are: t"),
    ({"schedule": "review"}, {}, ConfigError, r"options\.schedule: review .* set options\.period_epochs, or train"),
    ({"period_epochs": 2}, {}, ConfigError, r"options\.period_epochs: schedule constant has no period"),
    ({"final_student_phase": 10}, {}, ConfigError, r"options\.final_student_phase: 10 of 10 epochs"),
    ({"units": {"stage9": ["stage1"]}}, {}, ConfigError, r"options\.units: the student has no module stage9"),
    ({"units": {"stage1": []}}, {}, ConfigError, r"options\.units\.stage1: names no block"),
    ({"units": {"stage1": ["stage1"], "stage1.0": ["stage1.0"]}}, {}, ConfigError, r"stage1\.0 lies within stage1"),
    ({"units": {"stage1": ["stage2"]}}, {}, ShapeError, r"options\.units\.stage1: .* only channels may differ"),
    ({"units": {"stage2.0": ["stage2.1", "stage2.0"]}}, {}, ShapeError, r"stage2\.0 does not take what stage2\.1"),
    ({}, {"train": {"epochs": 10, "compile": True}}, ConfigError, r"train\.compile: .* set it to false"),
    ({}, {"student": STUDENT | {"depth": 20}}, ConfigError, r"stage1 has 3 blocks in the student and 2 in the teacher"),
    ({}, {"student": {"model": "wrn", "depth": 10, "widen": 1}}, ConfigError, r"WideResNet and ResNetCifar do not"),
    ({}, {"passes": {"main": [{"name": "at", "taps": {"student": ["stage1.pre"], "teacher": ["stage1"]}}]}}, TapError,
     r"options\.units: the tap stage1\.pre lies in stage1\.0"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "stage", "error", "said"), BAD, ids=[b[3][-24:] for b in BAD])
def test_what_cannot_work_is_refused_with_its_mend(
    options: dict[str, Any], stage: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        mixture(options, **stage)


@pytest.mark.parametrize("kind", ["wrn", "narrow"])
def test_wide_residual_networks_and_other_widths_mix_too(kind: str) -> None:
    student = {"wrn": {"model": "wrn", "depth": 10, "widen": 1}, "narrow": STUDENT}[kind]
    teacher = {"wrn": {"model": "wrn", "depth": 16, "widen": 1}, "narrow": TEACHER | {"widths": [8, *SMALL[1:]]}}[kind]
    built = mixture({"p_student": 0.4}, student=student, teacher=teacher, total_steps=100)
    begun = state(built)
    trained(built, range(6))
    changed = {name for name, tensor in state(built).items() if not torch.equal(tensor, begun[name])}
    assert any(name.startswith("connectors.") for name in changed) == (kind == "narrow")
    assert any(name.startswith("student.") for name in changed)
    assert not any(name.startswith("connectors") for name in built.network.model.state_dict())
