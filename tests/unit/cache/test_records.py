from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from kdscale.api import Outputs
from kdscale.cache.layout import Layout
from kdscale.cache.records import SparseOutputs, decode, encode
from kdscale.errors import CacheError, CacheMiss, ShapeError
from kdscale.nn.selection import predicted
from tests.unit.cache.answers import Answer, answer, answers, read, written
from tests.unit.cache.answers import layout as any_layout

HALF = 2.0**-11
"""Largest relative error of rounding to float16."""


def as_numpy(records: Tensor, layout: Layout) -> NDArray[np.void]:
    return records.numpy().view(layout.dtype)[:, 0]


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


def expected(given: Answer, layout: Layout) -> dict[str, NDArray[Any]]:
    """A topk record's fields but the draws, by NumPy in float64."""
    z = given.logits.numpy()
    order = np.argsort(-z, axis=1, kind="stable")[:, : layout.k]
    gaps = z.astype(np.float64) - z.max(1, keepdims=True)
    log_sum = np.stack([np.log(np.exp(gaps / t).sum(1)) for t in layout.temperatures], 1)
    labels = np.stack([given.labels, given.labels_b] if layout.mixing else [given.labels], 1)
    kept, target = (np.take_along_axis(gaps, at, 1) for at in (order, labels))
    return {"index": order, "logit": kept, "row_max": z.max(1), "log_sum": log_sum, "target": target}


# --------------------------------------------------------------------------- dense


@given(drawn=answers(), data=st.data())
def test_dense_fp32_returns_every_bit(drawn: Answer, data: st.DataObject) -> None:
    layout = any_layout(data, drawn.logits.shape[1], "dense_fp32")
    outputs = read(written(drawn, layout), drawn, layout)
    assert type(outputs) is Outputs
    assert torch.equal(bits(outputs.logits), bits(drawn.logits))


def test_dense_fp32_keeps_zeros_sign_and_the_smallest_and_largest_numbers() -> None:
    given = answer(0, 1, 6)._replace(logits=torch.tensor([[0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38]]))
    layout = Layout(6, "dense_fp32")
    assert torch.equal(bits(read(written(given, layout), given, layout).logits), bits(given.logits))


@given(drawn=answers(), data=st.data())
def test_dense_is_off_by_float16s_rounding_of_the_gap(drawn: Answer, data: st.DataObject) -> None:
    layout = any_layout(data, drawn.logits.shape[1], "dense")
    got = read(written(drawn, layout), drawn, layout).logits.double()
    exact = drawn.logits.double()
    gaps = exact.amax(1, keepdim=True) - exact
    reach = gaps <= 65_504
    slack = gaps * HALF + 2.0**-24 + exact.abs().amax(1, keepdim=True) * 2.0**-23
    assert ((got - exact).abs() <= slack)[reach].all()
    assert (got[~reach] <= (exact.amax(1, keepdim=True) - 65_504 * (1 - HALF)).expand_as(got)[~reach]).all()
    assert torch.equal(got.argmax(1), exact.argmax(1)) or not exact.std()


@given(drawn=answers())
def test_a_network_answers_alike_at_every_temperature(drawn: Answer) -> None:
    layout = Layout(drawn.logits.shape[1], "dense")
    outputs = read(written(drawn, layout), drawn, layout)
    assert outputs.at(4.0, torch.zeros_like(drawn.logits)) is outputs


# --------------------------------------------------------------------------- topk: the bytes


@given(drawn=answers(), data=st.data())
def test_bytes_are_what_the_layout_says(drawn: Answer, data: st.DataObject) -> None:
    layout = any_layout(data, drawn.logits.shape[1], "topk")
    record, want = as_numpy(written(drawn, layout), layout), expected(drawn, layout)
    for name in ("row_max", "log_sum", *(["index", "logit"] if layout.k else [])):
        np.testing.assert_allclose(record[name], np.maximum(want[name], -65_504) if name == "logit" else want[name],
                                   rtol=HALF if name == "logit" else 2e-7, atol=6e-8)  # fmt: skip
    target = np.maximum(want["target"], -65_504).reshape(record["target"].shape)
    np.testing.assert_allclose(record["target"], target, rtol=HALF, atol=6e-8)


@settings(max_examples=4)
@given(seed=st.integers(0, 99), classes=st.sampled_from([40_000, 65_536, 65_537, 70_000]))
def test_high_classes_survive(seed: int, classes: int) -> None:
    drawn = answer(seed, 3, classes)
    top = torch.tensor([[classes - 1, 32_768], [32_767, classes - 1], [classes - 2, 0]])
    drawn.logits.scatter_(1, top, torch.tensor([[30.0, 29.0]]).expand(3, 2))
    layout = Layout(classes, "topk", 5, "sampled", 40, (1.0, 4.0))
    outputs = read(written(drawn, layout), drawn, layout)
    assert isinstance(outputs, SparseOutputs)
    index = torch.from_numpy(np.argsort(-drawn.logits.numpy(), axis=1, kind="stable")[:, :5].copy())
    assert torch.equal(index[:, :2], top)
    assert torch.equal(outputs.record.classes[:, :5], index)
    assert int(outputs.record.drawn.max()) > 32_768
    assert int(outputs.record.drawn.min()) >= 0
    torch.testing.assert_close(outputs.logits.gather(1, top), torch.tensor([[30.0, 29.0]]).expand(3, 2))


@given(seed=st.integers(0, 999), classes=st.integers(2, 500), k=st.integers(1, 500))
def test_of_equal_logits_the_lower_class_is_kept(seed: int, classes: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.choice([-2.0, -0.0, 0.0, 1.5], (4, classes)).astype(np.float32))
    drawn = answer(seed, 4, classes)._replace(logits=logits)
    layout = Layout(classes, "topk", min(k, classes))
    want = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, : layout.k]
    np.testing.assert_array_equal(as_numpy(written(drawn, layout), layout)["index"], want)
    positive = drawn._replace(logits=logits + 0.0)
    assert torch.equal(written(drawn, layout), written(positive, layout)), "-0 is 0"


@settings(max_examples=60)
@given(drawn=answers(2000), data=st.data())
def test_a_record_is_its_own_rows_alone(drawn: Answer, data: st.DataObject) -> None:
    layout = any_layout(data, drawn.logits.shape[1])
    together = written(drawn, layout, view=3)
    for i in range(len(drawn.rows)):
        only = Answer(*(field[i : i + 1] for field in drawn))
        assert torch.equal(written(only, layout, view=3)[0], together[i])
    order = torch.randperm(len(drawn.rows))
    assert torch.equal(written(Answer(*(field[order] for field in drawn)), layout, view=3), together[order])


def test_a_record_of_many_classes_is_its_own_rows_alone() -> None:
    drawn, layout = answer(0, 3, 70_000), Layout(70_000, "topk", 10, "sampled", 30, (1.0, 4.0))
    torch.set_num_threads(2)  # one long row is summed in parts, by as many threads as there are
    try:
        alone = [written(Answer(*(field[i : i + 1] for field in drawn)), layout)[0] for i in range(3)]
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.stack(alone), written(drawn, layout))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["dense", "dense_fp32", "topk"])
def test_logits_of_every_precision_are_written_as_float32(dtype: torch.dtype, kind: Any) -> None:
    drawn, layout = answer(0, 5, 40), Layout(40, kind, 4 if kind == "topk" else 0)
    given = drawn._replace(logits=drawn.logits.to(dtype).requires_grad_())
    assert torch.equal(written(given, layout), written(given._replace(logits=given.logits.float()), layout))


def test_strides_do_not_matter() -> None:
    drawn, layout = answer(0, 6, 50), Layout(50, "topk", 4, "sampled", 5)
    records = written(drawn, layout)
    assert torch.equal(written(drawn._replace(logits=drawn.logits.t().contiguous().t()), layout), records)
    wide = torch.cat([torch.zeros(6, 1, dtype=torch.uint8), records, records], 1)
    outputs = read(wide[:, 1 : 1 + layout.record_bytes], drawn, layout)
    assert torch.equal(outputs.logits, read(records, drawn, layout).logits)


def test_the_top_class_stays_alone_at_the_top() -> None:
    logits = torch.tensor([[0.01, 0.01, -4.0]]).nextafter(torch.tensor([[1.0, 0.01, -4.0]]))
    given = answer(0, 1, 3)._replace(logits=logits)
    for layout in (Layout(3, "dense"), Layout(3, "topk", 2)):
        got = read(written(given, layout), given, layout).logits[0]
        assert got[0] > got[1]


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["dense", "dense_fp32", "topk"])
def test_an_answer_that_is_not_finite_is_refused_by_row(value: float, kind: Any) -> None:
    drawn, layout = answer(0, 4, 9), Layout(9, kind, 3 if kind == "topk" else 0)
    drawn.logits[2, 5] = value
    with pytest.raises(CacheError, match=rf"1 of 4 rows \(row {int(drawn.rows[2])}\) has nan or inf"):
        written(drawn, layout)


def test_what_overflows_float32_is_refused() -> None:
    drawn = answer(0, 2, 3)
    with pytest.raises(CacheError, match="nan or inf"):
        written(drawn._replace(logits=drawn.logits.double() * 1e300), Layout(3, "dense"))


@pytest.mark.parametrize("label", [-1, 9])
def test_a_label_that_is_no_class_is_refused(label: int) -> None:
    drawn = answer(0, 4, 9)
    drawn.labels_b[:] = label
    with pytest.raises(CacheError, match=r"4 of 4 rows .* a label outside of its 9 classes"):
        written(drawn, Layout(9, "topk", 3, mixing=True))


def test_what_does_not_fit_the_layout_is_refused() -> None:
    drawn, layout = answer(0, 4, 9), Layout(9, "topk", 3)
    rest: dict[str, Any] = {"labels": drawn.labels, "rows": drawn.rows, "view": 0}
    with pytest.raises(ShapeError, match="9 classes apart, the records are of 8"):
        written(drawn._replace(labels=drawn.labels % 8), Layout(8, "topk", 3))
    with pytest.raises(ShapeError, match="give labels_b"):
        encode(drawn.logits, replace(layout, mixing=True), **rest)
    with pytest.raises(ShapeError, match=r"keep 5 features .* gave none"):
        encode(drawn.logits, replace(layout, pooled=5), **rest)
    with pytest.raises(ShapeError, match=r"keep 5 features .* gave \[4, 6\]"):
        encode(drawn.logits, replace(layout, pooled=5), pooled=torch.zeros(4, 6), **rest)


def test_records_that_do_not_fit_the_layout_are_refused() -> None:
    drawn, layout = answer(0, 4, 9), Layout(9, "topk", 3, "to_target", mixing=True)
    records = written(drawn, layout)
    with pytest.raises(ShapeError, match="records of 25 bytes; this layout's have 24"):
        decode(torch.cat([records, records[:, :1]], 1), layout, labels=drawn.labels)
    with pytest.raises(ShapeError, match="give labels_b"):
        decode(records, layout, labels=drawn.labels)
    with pytest.raises(ShapeError, match="give lam"):
        decode(records, layout, labels=drawn.labels, labels_b=drawn.labels_b)


# --------------------------------------------------------------------------- features, temperatures


@pytest.mark.parametrize("layout", [Layout(9, "dense"), Layout(9, "dense_fp32"), Layout(9, "topk", 3)])
def test_the_pooled_feature_comes_along(layout: Layout) -> None:
    drawn, layout = answer(0, 4, 9), replace(layout, pooled=5)
    pooled = torch.randn(4, 5) * 100
    records = encode(drawn.logits, layout, labels=drawn.labels, rows=drawn.rows, view=0, pooled=pooled)
    outputs = read(records, drawn, layout)
    for seen in (outputs, outputs.at(1.0, drawn.logits)):
        assert [f.dtype for f in seen.features] == [torch.float32]
        torch.testing.assert_close(seen.features[0], pooled, rtol=HALF, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 65_600.0, -65_600.0])
def test_a_feature_that_float16_cannot_hold_is_refused(value: float) -> None:
    drawn, pooled = answer(0, 4, 9), torch.zeros(4, 5)
    pooled[1, 2] = value
    with pytest.raises(CacheError, match=rf"row {int(drawn.rows[1])}\) has a feature that float16 cannot hold"):
        encode(drawn.logits, Layout(9, "dense", pooled=5), labels=drawn.labels, rows=drawn.rows, view=0, pooled=pooled)


def test_a_temperature_that_is_not_listed_is_a_miss_that_names_those_that_are() -> None:
    drawn, layout = answer(0, 4, 9), Layout(9, "topk", 3, temperatures=(1.0, 2.5, 4.0))
    outputs = read(written(drawn, layout), drawn, layout)
    with pytest.raises(CacheMiss, match=r"temperature 3, only for 1, 2\.5, 4:"):
        outputs.at(3.0, drawn.logits)


def test_a_student_of_other_classes_is_refused() -> None:
    drawn, layout = answer(0, 4, 9), Layout(9, "topk", 3)
    with pytest.raises(ShapeError, match="the student tells 8 classes apart, the cache 9"):
        read(written(drawn, layout), drawn, layout).at(1.0, drawn.logits[:, :8])


# --------------------------------------------------------------------------- devices


@pytest.mark.gpu
@given(drawn=answers(), data=st.data())
def test_a_gpu_writes_and_reads_what_the_cpu_does(drawn: Answer, data: st.DataObject) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layout, there = any_layout(data, drawn.logits.shape[1]), Answer(*(field.cuda() for field in drawn))
    records = written(drawn, layout)
    ours, theirs = (as_numpy(r, layout) for r in (records, written(there, layout)))
    for field in layout.fields:
        if field.name == "log_sum":
            np.testing.assert_allclose(theirs["log_sum"], ours["log_sum"], rtol=2e-7, atol=1e-9)
        else:
            np.testing.assert_array_equal(theirs[field.name], ours[field.name])
    outputs, theirs_read = read(records, drawn, layout), read(records.cuda(), there, layout)
    for t in layout.temperatures or (4.0,):
        want, got = outputs.at(t, drawn.logits), theirs_read.at(t, there.logits)
        torch.testing.assert_close(got.logits.cpu(), want.logits, rtol=1e-5, atol=1e-4)


@given(drawn=answers(), data=st.data())
def test_who_is_right_is_read_from_records_as_from_the_teacher(drawn: Answer, data: st.DataObject) -> None:
    """Whatever a residual puts above the largest logit; of equal ones the lower class, as torch says of a CPU."""
    shape = any_layout(data, drawn.logits.shape[1])
    if shape.kind == "topk" and not shape.k:
        return  # a config keeps at least one
    answer = read(written(drawn, shape), drawn, shape)
    assert predicted(answer).equal(drawn.logits.argmax(1))
    for temperature in shape.temperatures:
        assert predicted(answer.at(temperature, drawn.logits)).equal(drawn.logits.argmax(1))
