from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.crd import Contrastive, noise_contrast

ROWS = 30
LABELS = torch.tensor([0, 1, 2, 3, 4])
BATCH = Batch(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), LABELS, torch.tensor([2, 7, 11, 0, 29]), view=0)


def loss(**options: Any) -> Contrastive:
    torch.manual_seed(0)
    config = Contrastive.Config(**{"dimensions": 8, "negatives": 12, **options})
    return Contrastive(config, Shapes(5, [(4,)], [(6,)], train_rows=ROWS))


def sides(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Outputs, Outputs]:
    rng = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(5, width, generator=rng).to(dtype).requires_grad_() for width in (4, 6)]
    return Outputs(torch.zeros(5, 5), drawn[:1]), Outputs(torch.zeros(5, 5), drawn[1:])


@given(seed=st.integers(0, 999))
def test_noise_contrast_equals_the_formula(seed: int) -> None:
    x = 3 * torch.randn(5, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    e, noise = x.exp(), 8 / ROWS
    want = -(e[:, 0] / (e[:, 0] + noise + 1e-7)).log() - (noise / (e[:, 1:] + noise + 1e-7)).log().sum(1)
    torch.testing.assert_close(noise_contrast(x, ROWS), want)


def test_extreme_scores_stay_finite() -> None:
    x = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    values = noise_contrast(x, ROWS)
    values.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(values).all()
    assert torch.isfinite(x.grad).all()


def test_training_moves_only_the_batchs_rows_of_the_banks() -> None:
    crd = loss(momentum=0.25)
    before = crd.memory_s.clone()
    student, teacher = sides(0)
    crd(student, teacher, BATCH)
    embedded = torch.nn.functional.normalize(crd.embed_s(student.features[0]), dim=1)
    want = torch.nn.functional.normalize(0.25 * before[BATCH.rows] + 0.75 * embedded, dim=1)
    torch.testing.assert_close(crd.memory_s[BATCH.rows], want)
    others = torch.ones(ROWS, dtype=torch.bool).index_fill(0, BATCH.rows, value=False)
    assert crd.memory_s[others].equal(before[others])
    assert crd.labels[BATCH.rows].equal(LABELS)
    assert (crd.labels[others] == -1).all()


def test_evaluation_moves_nothing() -> None:
    crd = loss()
    crd(*sides(0), BATCH)
    before = {name: value.clone() for name, value in crd.state_dict().items()}
    crd.eval()(*sides(1), BATCH)
    assert all(value.equal(before[name]) for name, value in crd.state_dict().items())


def test_z_is_set_by_the_first_batch_and_never_again() -> None:
    crd = loss()
    assert crd.log_z.isnan().all()
    crd(*sides(0), BATCH)
    first = crd.log_z.clone()
    assert torch.isfinite(first).all()
    crd(*sides(1), replace(BATCH, step=1))
    assert crd.log_z.equal(first)


def test_a_restart_from_the_state_goes_on_bit_for_bit() -> None:
    whole, later = loss(), loss()
    whole(*sides(0), BATCH)
    later.load_state_dict(whole.state_dict())
    step = replace(BATCH, step=1)
    assert later(*sides(1), step).equal(whole(*sides(1), step))
    assert later.memory_t.equal(whole.memory_t)


@given(seed=st.integers(0, 999), more=st.floats(0.1, 3))
def test_a_nearer_positive_lowers_the_loss_and_a_nearer_negative_raises_it(seed: int, more: float) -> None:
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plain = noise_contrast(x, ROWS)
    for column, sign in ((0, -1), (4, 1)):
        nearer = x.clone()
        nearer[:, column] += more
        assert (sign * (noise_contrast(nearer, ROWS) - plain) > 0).all()


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_zero_and_large_features_stay_finite_and_both_embeddings_train(fill: float) -> None:
    crd = loss()
    student = torch.full((5, 4), fill, requires_grad=True)
    values = crd(Outputs(torch.zeros(5, 5), [student]), Outputs(torch.zeros(5, 5), [torch.full((5, 6), fill)]), BATCH)
    values.sum().backward()
    grads: list[Tensor | None] = [student.grad, *(p.grad for p in crd.parameters())]
    assert torch.isfinite(values).all()
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    student, teacher = sides(0, half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss()(student, teacher, BATCH)
    wide = [Outputs(o.logits, [f.detach().float() for f in o.features]) for o in (student, teacher)]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, loss()(*wide, BATCH))


def test_a_train_set_of_one_row_is_refused() -> None:
    with pytest.raises(ShapeError, match="rows of the train set"):
        Contrastive(Contrastive.Config(), Shapes(5, [(4,)], [(6,)], train_rows=1))


@pytest.mark.parametrize("options", [{"negatives": 0}, {"momentum": 1.0}, {"temperature": 0.0}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Contrastive.Config(**options)
