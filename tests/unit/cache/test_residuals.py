from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Outputs
from kdscale.cache.layout import Layout
from kdscale.cache.records import SparseOutputs
from kdscale.cache.residuals import Sparse
from tests.unit.cache.answers import Answer, answer, answers, read, seen, written
from tests.unit.cache.answers import layout as any_layout

HALF = 2.0**-11
"""Largest relative error of rounding to float16."""
RESIDUALS: tuple[Any, ...] = ("uniform", "ghost", "to_target", "sampled", "renorm")


def sparse(drawn: Answer, layout: Layout, view: int = 0) -> Sparse:
    outputs = read(written(drawn, layout, view), drawn, layout)
    assert isinstance(outputs, SparseOutputs)
    return outputs.record


def known_mass(record: Sparse, temperature: float) -> Tensor:
    """Probabilities (B, J), float64, of the known classes as the record has them; 0 where one is named again."""
    log_sum = record.log_sums[:, record.layout.temperatures.index(temperature)][:, None]
    return (record.logits.double() / temperature - log_sum.double()).exp() * record.first


def is_known(record: Sparse) -> Tensor:
    return torch.zeros(len(record.first), record.layout.classes, dtype=torch.bool).scatter(
        1, record.classes, value=True
    )


def student_of(drawn: Answer, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(drawn.logits.shape, generator=torch.Generator().manual_seed(7))


def kl(logits: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student), (B,), of logits at one temperature and a student's that are divided already."""
    log_p = (logits / temperature).log_softmax(1)
    return (log_p.exp() * (log_p - student.log_softmax(1))).sum(1)


# --------------------------------------------------------------------------- what is known


@given(drawn=answers(), data=st.data())
def test_known_classes_have_their_probability_at_every_temperature(drawn: Answer, data: st.DataObject) -> None:
    layout = any_layout(data, drawn.logits.shape[1], "topk")
    layout = replace(layout, residual={"to_target": "uniform", "renorm": "ghost"}.get(layout.residual, layout.residual))
    known = is_known(sparse(drawn, layout))
    exact = drawn.logits.double()
    gaps = exact.amax(1, keepdim=True) - exact
    known &= gaps < 65_504
    for t in layout.temperatures:
        log_p = (exact / t).log_softmax(1)
        got = (read(written(drawn, layout), drawn, layout).at(t, student_of(drawn)).logits.double() / t).log_softmax(1)
        rounding = gaps / t * HALF
        together = (log_p.exp() * rounding).sum(1, keepdim=True)  # what rounded ones may exceed 1 by
        float32 = (exact.abs().amax(1, keepdim=True) / t + 30) * 2.0**-22
        assert ((got - log_p).abs() <= rounding + together + float32)[known].all()


@given(drawn=answers(), data=st.data())
def test_the_completed_distribution_sums_to_one_before_it_is_scaled(drawn: Answer, data: st.DataObject) -> None:
    layout = any_layout(data, drawn.logits.shape[1], "topk")
    if layout.residual == "renorm" or drawn.logits.abs().max() > 1000:
        return
    record = sparse(drawn, layout)
    for slot, t in enumerate(layout.temperatures):
        logits = read(written(drawn, layout), drawn, layout).at(t, student_of(drawn)).logits.double()
        total = ((logits - record.row_max) / t - record.log_sums[:, slot : slot + 1]).exp().sum(1)
        known = known_mass(record, t).sum(1)
        somebody = (~is_known(record)).any(1) | (layout.residual == "to_target")
        want = torch.where(somebody, known.clamp(min=1), known)
        torch.testing.assert_close(total, want, rtol=0, atol=2e-6 + float(drawn.logits.abs().max()) * 2e-7)


@given(seed=st.integers(0, 999), classes=st.integers(1, 1000), k=st.integers(1, 20), t=st.sampled_from([1.0, 4.0]))
def test_what_is_known_and_the_true_rest_sum_to_one(seed: int, classes: int, k: int, t: float) -> None:
    drawn = answer(seed, 4, classes)
    record = sparse(drawn, Layout(classes, "topk", min(k, classes), temperatures=(1.0, 4.0)))
    rest = ((drawn.logits.double() / t).softmax(1) * ~is_known(record)).sum(1)
    torch.testing.assert_close(known_mass(record, t).sum(1) + rest, torch.ones(4).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_logits_that_round_to_more_than_one_leave_a_residual_that_is_not_negative(residual: Any) -> None:
    logits = torch.full((3, 1000), -30.0)
    logits[:, :950] = -7.00194  # float16 makes -7 of it
    logits[:, 5] = 0.0
    drawn = answer(0, 3, 1000)._replace(logits=logits, labels=torch.tensor([5, 6, 999]))
    layout = Layout(1000, "topk", 950, residual, 4 if residual == "sampled" else 0)
    record = sparse(drawn, layout)
    assert (known_mass(record, 1.0).sum(1) > 1.0005).all()
    p = seen(drawn, layout, student=student_of(drawn))
    assert (p >= 0).all()
    torch.testing.assert_close(p, logits.double().softmax(1), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("logits", [[0.0] * 6, [1e4] * 6, [7e4, 0, 0, 1, 2, 3], [0.0, -7e4, -7e4, -7e4, -7e4, -7e4]])
@pytest.mark.parametrize("label", [0, 5])
def test_constant_and_large_logits(residual: Any, logits: list[float], label: int) -> None:
    drawn = answer(0, 2, 6)._replace(logits=torch.tensor([logits, logits]), labels=torch.tensor([label, label]))
    layout = Layout(6, "topk", 2, residual, 3 if residual == "sampled" else 0, (1.0, 4.0))
    for t in layout.temperatures:
        want, p = (drawn.logits.double() / t).softmax(1), seen(drawn, layout, t)
        constant = len(set(logits)) == 1
        known = is_known(sparse(drawn, layout))
        if constant and residual in {"uniform", "ghost"}:  # the student of `seen` is uniform too
            torch.testing.assert_close(p, want, rtol=1e-3, atol=1e-6)
        if not constant or residual == "sampled":
            torch.testing.assert_close(p[known], want[known], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(p.sum(1), torch.ones(2).double())


@pytest.mark.parametrize("residual", RESIDUALS)
def test_with_every_class_kept_nothing_is_left_to_spread(residual: Any) -> None:
    for classes in (1, 2, 30):
        drawn = answer(classes, 5, classes)
        layout = Layout(classes, "topk", classes, residual, 3 if residual == "sampled" else 0, (1.0, 4.0), mixing=True)
        for t in layout.temperatures:
            p = seen(drawn, layout, t, student_of(drawn))
            torch.testing.assert_close(p, (drawn.logits.double() / t).softmax(1), rtol=5e-3, atol=1e-3)


# --------------------------------------------------------------------------- each policy


@given(drawn=answers(), data=st.data())
def test_uniform_gives_all_others_the_same(drawn: Answer, data: st.DataObject) -> None:
    layout = replace(any_layout(data, drawn.logits.shape[1], "topk"), residual="uniform", draws=0, k=1)
    record = sparse(drawn, layout)
    others = ~is_known(record)
    for t in layout.temperatures:
        left = (1 - known_mass(record, t).sum(1, keepdim=True)).clamp(min=0)
        want = (left / others.sum(1, keepdim=True)).expand(-1, layout.classes)
        slack = 1e-6 + 3e-7 * float(drawn.logits.abs().max())
        torch.testing.assert_close(seen(drawn, layout, t)[others], want[others], rtol=slack, atol=2e-6)


@given(drawn=answers(), data=st.data(), tempered=st.booleans())
def test_ghost_is_the_divergence_over_buckets(drawn: Answer, data: st.DataObject, tempered: bool) -> None:
    if drawn.logits.abs().max() > 1000 or drawn.logits.shape[1] < 2:
        return
    layout = replace(any_layout(data, drawn.logits.shape[1], "topk"), residual="ghost", draws=0, k=1)
    record = sparse(drawn, layout)
    some = ~is_known(record).all(1)
    for t in layout.temperatures:
        given = (student_of(drawn).double() / (t if tempered else 1.0)).requires_grad_()
        value = kl(read(written(drawn, layout), drawn, layout).at(t, given).logits.double(), given, t)[some]
        want = bucketed(record, given, t)[some]
        torch.testing.assert_close(value, want, rtol=1e-4, atol=2e-5)
        (got,) = torch.autograd.grad(value.sum(), given)
        (wanted,) = torch.autograd.grad(want.sum(), given)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def bucketed(record: Sparse, student: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student), (B,), over the known classes and one bucket of all others."""
    log_q = student.log_softmax(1)
    p = known_mass(record, temperature)
    log_q_known = log_q.gather(1, record.classes)
    rest_p = (1 - p.sum(1)).clamp(min=torch.finfo(torch.float32).eps)
    log_q_rest = log_q.masked_fill(is_known(record), -1e300).logsumexp(1)
    return (torch.xlogy(p, p) - p * log_q_known).sum(1) + rest_p * (rest_p.log() - log_q_rest)


@given(drawn=answers(60), data=st.data())
def test_to_target_gives_the_rest_to_the_labels(drawn: Answer, data: st.DataObject) -> None:
    layout = replace(any_layout(data, drawn.logits.shape[1], "topk"), residual="to_target", draws=0, k=1)
    record = sparse(drawn, layout)
    for t in layout.temperatures:
        mass = known_mass(record, t)
        left = (1 - mass.sum(1)).clamp(min=0)
        want = torch.zeros(drawn.logits.shape, dtype=torch.float64).scatter_add(1, record.classes, mass)
        lam = drawn.lam.double() if layout.mixing else torch.ones(len(left)).double()
        want.scatter_add_(1, drawn.labels[:, None], (lam * left)[:, None])
        want.scatter_add_(1, drawn.labels_b[:, None], ((1 - lam) * left)[:, None])
        slack = 2e-6 + 3e-7 * float(drawn.logits.abs().max())
        torch.testing.assert_close(seen(drawn, layout, t), want / want.sum(1, keepdim=True), rtol=slack, atol=2e-6)


def test_a_label_without_a_share_keeps_its_own_logit() -> None:
    drawn, layout = answer(0, 4, 9), Layout(9, "topk", 1, "to_target", mixing=True)
    drawn = drawn._replace(lam=torch.zeros(4), labels=drawn.logits.argmin(1), labels_b=drawn.logits.argmax(1))
    drawn.logits.scatter_(1, drawn.labels[:, None], -60_000.0)
    got = read(written(drawn, layout), drawn, layout).logits.gather(1, drawn.labels[:, None])
    torch.testing.assert_close(got, torch.full((4, 1), -60_000.0), rtol=HALF, atol=0)


@given(drawn=answers(60), data=st.data())
def test_renorm_scales_the_known_ones(drawn: Answer, data: st.DataObject) -> None:
    layout = replace(any_layout(data, drawn.logits.shape[1], "topk"), residual="renorm", draws=0, k=1)
    record = sparse(drawn, layout)
    for t in layout.temperatures:
        mass = known_mass(record, t)
        want = torch.zeros(drawn.logits.shape, dtype=torch.float64).scatter_add(1, record.classes, mass)
        slack = 2e-6 + 3e-7 * float(drawn.logits.abs().max())
        torch.testing.assert_close(seen(drawn, layout, t), want / want.sum(1, keepdim=True), rtol=slack, atol=2e-6)


@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("rank", [0, 6], ids=["label at the top", "label in the tail"])
def test_sampled_has_the_teachers_expectation(k: int, mixing: bool, rank: int) -> None:
    copies, views, draws, classes = 64, 80, 5, 12
    one = answer(4, 1, classes, scale=1.5)
    by_rank = one.logits[0].argsort(descending=True)
    drawn = Answer(
        one.logits.expand(copies, -1), by_rank[rank].expand(copies), torch.arange(copies),
        by_rank[8].expand(copies), one.lam.expand(copies),
    )  # fmt: skip
    layout = Layout(classes, "topk", k, "sampled", draws, (1.0, 4.0), mixing=mixing)
    known = is_known(sparse(drawn, layout))[0]
    for t in layout.temperatures:
        p = (one.logits[0].double() / t).softmax(0)
        students = torch.zeros(copies, classes)
        sums = torch.zeros(classes, dtype=torch.float64)
        for view in range(views):
            logits = read(written(drawn, layout, view), drawn, layout).at(t, students).logits
            sums += (logits.double() / t).softmax(1).sum(0)
        left = p[~known].sum()
        share = p[~known] / left
        sigma = left * (share * (1 - share) / (draws * copies * views)).sqrt()
        scores = (sums[~known] / (copies * views) - p[~known]) / sigma
        assert (scores.abs() < 3).all()
        assert 0.4 < float(scores.square().mean().sqrt()) < 1.6, "as far off as chance, neither more nor less"
        torch.testing.assert_close(sums[known] / (copies * views), p[known], rtol=1e-3, atol=1e-6)


# --------------------------------------------------------------------------- all policies


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(drawn=answers(), data=st.data())
def test_nothing_is_nan_in_a_divergence_nor_in_its_gradient(
    dtype: torch.dtype, drawn: Answer, data: st.DataObject
) -> None:
    layout = any_layout(data, drawn.logits.shape[1], "topk")
    for t in layout.temperatures:
        student = student_of(drawn, 20.0).to(dtype).requires_grad_()
        logits = read(written(drawn, layout), drawn, layout).at(t, student / t).logits
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        assert logits.isfinite().all()
        value = kl(logits.to(dtype), student / t, t)
        (slope,) = torch.autograd.grad(value.sum(), student)
        assert value.isfinite().all()
        assert slope.isfinite().all()
        assert (logits.to(dtype) / t).log_softmax(1).isfinite().all()
        assert float(value.detach().min()) > -1e-4


@pytest.mark.parametrize(("residual", "draws"), [("to_target", 0), ("sampled", 4), ("renorm", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classes_without_mass_have_none_at_all(residual: Any, draws: int, dtype: torch.dtype) -> None:
    drawn, layout = answer(0, 6, 200), Layout(200, "topk", 3, residual, draws, (0.5, 1.0, 20.0))
    record = sparse(drawn, layout)
    for slot, t in enumerate(layout.temperatures):
        logits = read(written(drawn, layout), drawn, layout).at(t, student_of(drawn)).logits.to(dtype)
        without = ~is_known(record)
        without.scatter_(1, record.drawn[:, slot * draws : (slot + 1) * draws], value=False)
        assert without.sum() > 6 * 190
        assert ((logits / t).softmax(1)[without] == 0).all()
        assert (logits / t).log_softmax(1).isfinite().all()


@pytest.mark.parametrize("residual", ["uniform", "to_target", "sampled", "renorm"])
def test_logits_are_those_of_temperature_1(residual: Any) -> None:
    drawn, layout = answer(0, 6, 40), Layout(40, "topk", 3, residual, 4 if residual == "sampled" else 0, (1.0, 4.0))
    outputs = read(written(drawn, layout), drawn, layout)
    at_1, at_4 = outputs.at(1.0, student_of(drawn)), outputs.at(4.0, student_of(drawn))
    assert torch.equal(outputs.logits, at_1.logits)
    assert type(at_4) is Outputs
    assert at_4.at(1.0, student_of(drawn)) is at_4
    assert not torch.equal(at_1.logits, at_4.logits)


def test_without_a_student_a_ghost_is_uniform() -> None:
    drawn, layout = answer(0, 6, 40), Layout(40, "topk", 3, "ghost")
    uniform = replace(layout, residual="uniform")
    ghost, plain = (read(written(drawn, which), drawn, which) for which in (layout, uniform))
    assert torch.equal(ghost.logits, plain.logits)
    assert not torch.equal(ghost.at(1.0, student_of(drawn)).logits, plain.logits)


@pytest.mark.parametrize("residual", ["uniform", "ghost", "sampled", "renorm"])
@pytest.mark.parametrize("t", [1.0, 4.0])
def test_swapping_the_label_with_the_top_class_is_as_good_as_on_dense_logits(residual: Any, t: float) -> None:
    drawn = answer(0, 50, 100)
    layout = Layout(100, "topk", 5, residual, 6 if residual == "sampled" else 0, (1.0, 4.0))
    record = sparse(drawn, layout)
    top, known = drawn.logits.argmax(1), is_known(record)
    assert torch.equal(record.classes[:, 0], top)
    assert (~known.gather(1, drawn.labels[:, None])).sum() == 0
    answered = read(written(drawn, layout), drawn, layout).at(t, student_of(drawn)).logits
    got, want = (swapped(z.double(), top, drawn.labels).div(t).softmax(1) for z in (answered, drawn.logits))
    if residual == "renorm":
        got = got * (want * known).sum(1, keepdim=True)
    torch.testing.assert_close(got[known], want[known], rtol=1e-2, atol=1e-4)
    if residual in {"uniform", "renorm"}:  # the others hand all the rest to few classes, which may then be the top
        assert torch.equal(got.argmax(1), drawn.labels)
        assert torch.equal(answered.argmax(1), top)


def swapped(logits: Tensor, top: Tensor, labels: Tensor) -> Tensor:
    """WSKD's `swap`: the label gets the largest logit, the top class the label's."""
    z_top, z_label = logits.gather(1, top[:, None]), logits.gather(1, labels[:, None])
    return logits.scatter(1, top[:, None], z_label).scatter(1, labels[:, None], z_top)


@given(data=st.data())
def test_reading_waits_for_no_value(data: st.DataObject) -> None:
    """On the meta device there are no values to wait for: whatever asks for one raises."""
    layout = any_layout(data, 50)
    meta = Answer(*(field.to("meta") for field in answer(0, 4, 50)))
    outputs = read(torch.empty(4, layout.record_bytes, dtype=torch.uint8, device="meta"), meta, layout)
    assert outputs.logits.shape == (4, 50)
    for t in layout.temperatures:
        assert outputs.at(t, meta.logits).logits.device.type == "meta"


def test_many_classes_are_completed_alike() -> None:
    drawn = answer(0, 3, 70_000)
    drawn.labels[:] = torch.tensor([69_999, 40_000, 5])
    for residual, draws in (("uniform", 0), ("ghost", 0), ("to_target", 0), ("sampled", 20), ("renorm", 0)):
        layout = Layout(70_000, "topk", 10, residual, draws, (1.0, 4.0))  # type: ignore[arg-type]
        p = seen(drawn, layout, 4.0, student_of(drawn))
        want = (drawn.logits.double() / 4).softmax(1)
        known = is_known(sparse(drawn, layout))
        if residual == "renorm":
            p = p * (want * known).sum(1, keepdim=True)
        if residual == "to_target":
            known.scatter_(1, drawn.labels[:, None], value=False)
        np.testing.assert_allclose(p[known], want[known], rtol=5e-3)
