"""The checks by which one knows that an on-the-fly ensemble is one, on small networks and batches."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdscale import plugins
from kdscale.api import Batch, Shapes, Strategy, Term
from kdscale.config.schema import StudentConfig, TrainConfig
from kdscale.engines.ddp import DdpEngine
from kdscale.errors import ConfigError, ShapeError
from kdscale.losses.ce import CrossEntropy
from kdscale.strategies.distill import Distill
from kdscale.strategies.one import OnTheFlyEnsemble
from kdscale.train.evaluate import Evaluator
from tests.unit.train.made_up import SHAPES, batch
from tests.unit.train.small_ensemble import SIZE, STEPS, ce, ensemble, fresh, stage

Config = OnTheFlyEnsemble.Config


def seen(step: int = 0, count: int = 8) -> Batch:
    return batch(step, count, SIZE)


def tail(name: str) -> bool:
    return name.startswith(("stage3.", "head."))


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3))
def test_shares_are_positive_and_add_up_to_one_and_weigh_the_logits(branches: int, step: int) -> None:
    answered = ensemble(branches=branches).answered(seen(step).images)
    shares = answered.log_gate.exp()
    *each, whole = answered.beside.values()
    assert shares.shape == (8, branches)
    assert (shares > 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(8), rtol=0, atol=1e-6)
    torch.testing.assert_close(whole, sum(shares[:, i : i + 1] * logits for i, logits in enumerate(each)))


def test_the_loss_is_that_of_the_paper() -> None:
    one, b = ensemble(branches=3, ramp=0.5, temperature=2.0, loss_scale=0.7), seen(3)
    got = one(b, {}, "main")
    one = ensemble(branches=3, ramp=0.5, temperature=2.0, loss_scale=0.7)
    *each, whole = one.answered(b.images).beside.values()
    hard = sum(F.cross_entropy(logits, b.labels) for logits in (*each, whole))
    target = (whole / 2).softmax(1)
    soft = 4 * sum(F.kl_div((logits / 2).log_softmax(1), target, reduction="batchmean") for logits in each)
    ramp = math.exp(-5 * (1 - 3 / (0.5 * STEPS)) ** 2)
    torch.testing.assert_close(got.total, 0.7 * (hard + ramp * soft))
    torch.testing.assert_close(got.terms, {"ce": hard.detach()})
    torch.testing.assert_close(got.figures["distillation"], soft.detach())


def test_with_one_branch_it_is_twice_the_cross_entropy() -> None:
    one, plain, b = ensemble(branches=1), Distill(fresh("student"), {"main": [ce()]}).train(), seen()
    answered = one.answered(b.images)
    assert torch.equal(answered.log_gate.exp(), torch.ones(8, 1))
    assert torch.equal(answered.beside["ensemble"], answered.logits)
    losses, expected = ensemble(branches=1)(b, {}, "main"), plain(b, {}, "main")
    assert losses.figures["distillation"] == 0
    assert torch.equal(losses.total, 2 * expected.total)
    one(b, {}, "main").total.backward()
    expected.total.backward()
    for (name, ours), theirs in zip(one.student.named_parameters(), plain.student.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, 2 * theirs.grad), name


def test_no_gradient_of_the_distillation_passes_through_its_target() -> None:
    one = ensemble(branches=3)
    ce_part, distillation = one.weighted(seen(), {}, "main")
    gate = list(one.branches.gate.parameters())
    reached = torch.autograd.grad(distillation.value, gate, retain_graph=True, allow_unused=True)
    assert reached == (None,) * len(gate)
    assert all(g is not None for g in torch.autograd.grad(ce_part.value, gate, allow_unused=True))


def test_every_parameter_trains() -> None:
    one = ensemble(branches=3)
    one(seen(), {}, "main").total.backward()
    assert [name for name, p in one.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_permuting_branches_permutes_their_shares_and_nothing_else(order: tuple[int, ...]) -> None:
    one, permuted, b = ensemble(branches=3), ensemble(branches=3), seen()
    models = [one.student.model, *one.branches.others]
    targets = [permuted.student.model, *permuted.branches.others]
    for target, source in zip(targets, order, strict=True):
        part = {k: v for k, v in models[source].state_dict().items() if tail(k)}
        assert not target.load_state_dict(part, strict=False).unexpected_keys
    gate = {k: v[list(order)] if v.dim() else v for k, v in one.branches.gate.state_dict().items()}
    permuted.branches.gate.load_state_dict(gate)
    ours, theirs = one.eval().answered(b.images), permuted.eval().answered(b.images)
    torch.testing.assert_close(theirs.log_gate, ours.log_gate[:, list(order)])
    torch.testing.assert_close(theirs.beside["ensemble"], ours.beside["ensemble"])


def test_branches_begin_apart_and_the_student_as_it_would_alone() -> None:
    one, alone = ensemble(branches=3), fresh("student").model.state_dict()
    heads = [one.student.model.head.weight, *(other.head.weight for other in one.branches.others)]
    assert not any(torch.equal(heads[i], heads[j]) for i, j in [(0, 1), (0, 2), (1, 2)])
    assert all(torch.equal(value, alone[name]) for name, value in one.student.model.state_dict().items())


def test_branches_that_begin_alike_under_an_even_gate_stay_alike() -> None:
    one = ensemble(branches=2)
    begin = {k: v for k, v in one.student.model.state_dict().items() if tail(k)}
    one.branches.others[0].load_state_dict(begin, strict=False)
    for value in one.branches.gate.state_dict().values():
        value.copy_(value[:1].expand_as(value) if value.dim() else value)
    engine = DdpEngine(one, TrainConfig(epochs=1, precision="fp32", lr=0.1), steps_per_epoch=STEPS)
    for step in range(2):
        engine.update(engine.forward(seen(step), {}, "main").total)
        engine.end_step(step)
    other = dict(one.branches.others[0].named_parameters())
    for name, value in one.student.model.named_parameters():
        if tail(name):
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_the_student_is_the_baselines_network_and_answers_as_branch_0_of_the_training_graph() -> None:
    one = ensemble(branches=3)
    engine = DdpEngine(one, TrainConfig(epochs=1, precision="fp32", lr=0.1), steps_per_epoch=STEPS)
    engine.update(engine.forward(seen(), {}, "main").total)
    baseline = fresh("other")
    baseline.model.load_state_dict(one.student.model.state_dict())  # the same names, none more, none less
    answered = one.eval().answered(seen(1).images)
    assert torch.equal(baseline.eval()(seen(1).images).logits, answered.logits)
    assert torch.equal(answered.logits, answered.beside["branch0"])


@pytest.mark.parametrize(
    ("model", "options", "split", "shared"),
    [
        ("resnet_cifar", {"depth": 8, "widths": [4, 4, 8]}, None, ("stem", "stage1", "stage2")),
        ("resnet_cifar", {"depth": 14, "widths": [4, 4, 8]}, "stage1", ("stem", "stage1")),
        ("resnet_cifar", {"depth": 8, "widths": [4, 4, 8], "block": "bottleneck"}, "stem", ("stem",)),
        ("wrn", {"depth": 10, "widen": 1}, None, ("stem", "stage1", "stage2")),
        ("wrn", {"depth": 10, "widen": 1}, "stage1", ("stem", "stage1")),
        ("vgg", {"depth": 8}, None, ("stem", "stage1", "stage2", "stage3")),
        ("vgg", {"depth": 8}, "stage2", ("stem", "stage1", "stage2")),
        ("shufflenet_v2", {}, None, ("stem", "stage1", "stage2")),
        ("plain_cnn", {}, None, ()),
        ("mobilenet_v2", {}, None, ()),
    ],
)
def test_models_share_what_lies_before_the_split(
    model: str, options: dict[str, Any], split: str | None, shared: tuple[str, ...]
) -> None:
    one = ensemble(model=model, model_options=options, size=16, split_at=split, branches=2)
    own = {name: p.shape for name, p in one.student.model.named_parameters()}
    branch = {name: p.shape for name, p in one.branches.others[0].named_parameters()}
    assert branch.items() < own.items()
    if shared:
        assert set(own) - set(branch) == {name for name in own if name.partition(".")[0] in shared}
    one(batch(0, 4, 16), {}, "main").total.backward()
    assert [name for name, p in one.named_parameters() if p.grad is None] == []


def test_the_ramp_rises_over_its_share_of_the_steps() -> None:
    one = ensemble(branches=2, ramp=0.5)
    assert one.ramp(0) == pytest.approx(math.exp(-5))
    assert one.ramp(STEPS // 2) == one.ramp(STEPS) == 1
    assert one.ramp(1) < one.ramp(2) < 1
    assert ensemble(branches=2, ramp=0.0).ramp(0) == 1


def test_it_measures_what_it_says_it_measures() -> None:
    one = ensemble(branches=3)
    figures = one(seen(), {}, "main").figures
    assert set(figures) == set(one.figures)
    shares = torch.stack([figures[f"gate/branch{i}"] for i in range(3)])
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    assert 0 < figures["gate/entropy"] <= math.log(3) + 1e-6


def test_evaluation_tells_the_accuracy_of_each_branch_and_of_the_ensemble() -> None:
    one, batches = ensemble(branches=2), [seen(step) for step in range(3)]
    before = one.training
    figures = Evaluator(batches, [], 3, torch.device("cpu"), 24)(one.evaluated())
    assert figures is not None
    assert one.training == before
    one.eval()
    for name in ("branch0", "branch1", "ensemble"):
        right = sum(int((one.answered(b.images).beside[name].argmax(1) == b.labels).sum()) for b in batches)
        assert figures.top1_of[name] == right / 24
    assert figures.top1 == figures.top1_of["branch0"]
    assert figures.metrics("val")["val/top1_of/ensemble"] == figures.top1_of["ensemble"]


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, precision="fp32", lr=0.1)

    def go(engine: DdpEngine, steps: range) -> Strategy:
        for step in steps:
            engine.update(engine.forward(seen(step), {}, "main").total)
            engine.end_step(step)
        return engine.unwrapped

    whole = go(DdpEngine(ensemble(branches=3), config, steps_per_epoch=STEPS), range(5)).state_dict()
    first, second = (DdpEngine(ensemble(branches=3), config, steps_per_epoch=STEPS) for _ in range(2))
    go(first, range(2))
    first.save(tmp_path)
    second.load(tmp_path)
    resumed = go(second, range(2, 5)).state_dict()
    assert [name for name, value in whole.items() if not torch.equal(value, resumed[name])] == []


def test_a_batch_of_one_is_refused_in_training_and_answered_in_evaluation() -> None:
    one = ensemble(branches=2)
    with pytest.raises(ShapeError, match=r"the gate.*train\.batch_size"):
        one(seen(count=1), {}, "main")
    assert one.eval().answered(seen(count=1).images).beside["ensemble"].isfinite().all()


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ({"a": [ce()], "b": [ce("kd")]}, "one pass"),
        ({"main": [Term("hint", ce().loss, lambda step: 1.0, student_taps=(0,))]}, r"losses\.hint: .*logits"),
        ({"main": [ce("distillation")]}, r"losses\.distillation"),
    ],
)
def test_what_it_cannot_take_of_each_branch_is_refused(passes: dict[str, list[Term]], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OnTheFlyEnsemble.build(fresh("student"), passes, Config(), stage())


def test_a_loss_with_a_memory_is_refused() -> None:
    class Remembers(CrossEntropy):
        stateful = True

    term = Term("memory", Remembers(CrossEntropy.Config(), SHAPES), lambda step: 1.0)
    with pytest.raises(ConfigError, match=r"losses\.memory"):
        OnTheFlyEnsemble.build(fresh("student"), {"main": [term]}, Config(), stage())


def test_terms_with_a_teacher_are_taken_of_every_branch() -> None:
    kd = plugins.load("losses", "kd")
    term = Term("kd", kd(kd.Config(), Shapes(classes=3)), lambda step: 1.0, "big")
    one, b = ensemble(branches=2, terms=[term]), seen()
    taught = {"big": fresh("big").eval()(b.images)}
    got = one(b, taught, "main").terms["kd"]
    answers = ensemble(branches=2).answered(b.images).beside.values()
    probabilities = (taught["big"].logits / 4).softmax(1)
    expected = 16 * sum(F.kl_div((z / 4).log_softmax(1), probabilities, reduction="batchmean") for z in answers)
    torch.testing.assert_close(got, expected.detach())  # type: ignore[union-attr]


def test_with_one_branch_at_half_the_scale_it_trains_as_cross_entropy_does_bit_for_bit() -> None:
    config = TrainConfig(epochs=1, precision="fp32", lr=0.1)
    found = []
    for strategy in (ensemble(branches=1, loss_scale=0.5), Distill(fresh("student"), {"main": [ce()]}).train()):
        engine = DdpEngine(strategy, config, steps_per_epoch=STEPS)
        for step in range(STEPS):
            engine.update(engine.forward(seen(step), {}, "main").total)
            engine.end_step(step)
        found.append(strategy.student.state_dict())
    ours, plain = found
    assert [name for name, value in plain.items() if not torch.equal(ours[name], value)] == []
    assert ours.keys() == plain.keys()
    assert not torch.equal(ours["model.head.weight"], fresh("student").model.head.weight)


def test_a_student_with_branches_answers_as_their_ensemble_and_trains_to_the_same_weights() -> None:
    """What the strategy would throw away is part of the network, and nothing else differs, bit for bit."""
    config = TrainConfig(epochs=1, precision="fp32", lr=0.1)
    apart, whole = ensemble(branches=3), ensemble(model_options={"branches": {"count": 3}})
    for one in (apart, whole):
        engine = DdpEngine(one, config, steps_per_epoch=STEPS)
        for step in range(3):
            engine.update(engine.forward(seen(step), {}, "main").total)
            engine.end_step(step)
    within = {k.replace("student.model.native_ensemble.", "further."): v for k, v in whole.state_dict().items()}
    assert within.keys() == apart.state_dict().keys()
    assert [name for name, value in apart.state_dict().items() if not torch.equal(within[name], value)] == []
    images = seen(4).images
    expected = apart.eval().answered(images).beside["ensemble"]
    answered = whole.eval().answered(images)
    assert torch.equal(answered.logits, expected)
    assert torch.equal(answered.logits, answered.beside["ensemble"])

    again = fresh("other", branches={"count": 3})
    again.model.load_state_dict(whole.student.model.state_dict())
    assert torch.equal(again.eval()(images).logits, expected)


def test_a_copy_of_a_network_with_branches_has_its_own() -> None:
    network = fresh("student", branches={"count": 2}).eval()
    copied, images = copy.deepcopy(network), seen().images
    before = network(images).logits
    with torch.no_grad():
        for parameter in copied.model.native_ensemble.parameters():
            parameter.add_(1.0)
    assert torch.equal(network(images).logits, before)
    assert not torch.allclose(copied(images).logits, before)


def test_branches_answer_in_the_order_of_the_datas_classes() -> None:
    one = ensemble(model_options={"branches": {"count": 2}, "classes": 4, "class_map": [3, 0, 2]}).eval()
    answered = one.answered(seen().images)
    assert [logits.shape[1] for logits in answered.beside.values()] == [3, 3, 3]
    assert torch.equal(answered.logits, answered.beside["ensemble"])


@pytest.mark.parametrize("options", [{"branches": 3}, {"split_at": "stage1"}])
def test_what_the_student_says_is_not_said_again(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"options: student\.branches says"):
        ensemble(model_options={"branches": {"count": 2}}, **options)


def test_a_student_has_a_split_head_or_branches() -> None:
    head = {"split_at": "stage1", "channels": 2}
    with pytest.raises(ValueError, match="a split_head or branches, not both"):
        StudentConfig(model="resnet_cifar", split_head=head, branches={"count": 2})


@pytest.mark.parametrize(
    ("split", "said"),
    [("stage9", "student.branches.split_at: .*no tap stage9"), ("head", "student.branches.split_at: head is the end")],
)
def test_where_branches_cannot_begin_is_said(split: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fresh("student", branches={"count": 2, "split_at": split})
