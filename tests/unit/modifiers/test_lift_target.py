from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.modifiers.lift_target import LiftTarget

C, B = 6, 8
RULES: list[dict[str, Any]] = [
    {"rule": "logit_lift"}, {"rule": "logit_lift", "delta": 0.25}, {"rule": "swap"},
    {"rule": "set_prob", "probability": 0.7}, {"rule": "lsr", "smoothing": 0.2},
]  # fmt: skip
TEMPERATURES = [1.0, 3.0, 4.0, 20.0]


def answered(seed: int) -> tuple[Tensor, Batch]:
    """Logits in float64, and labels of which the first is right and the second wrong."""
    rng = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(B, C, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, C, (B,), generator=rng)
    labels[0], labels[1] = logits[0].argmax(), (logits[1].argmax() + 1) % C
    return logits, Batch(torch.zeros(B, 1, 2, 2, dtype=torch.uint8), labels, torch.arange(B), view=0)


def repaired(logits: Tensor, batch: Batch, temperature: float = 1.0, **options: Any) -> Tensor:
    lift = LiftTarget(LiftTarget.Config(**options), Shapes(classes=C, temperature=temperature))
    features = [torch.ones(B, 2)]
    student = Outputs(torch.zeros(B, C))
    own, theirs = lift.before(student, Outputs(logits, features), batch)
    assert own is student
    assert theirs is not None
    assert theirs.features is features
    return theirs.logits


@pytest.mark.parametrize("options", RULES, ids=str)
@given(seed=st.integers(0, 999), temperature=st.sampled_from(TEMPERATURES))
def test_the_label_wins_and_right_answers_stay(options: dict[str, Any], seed: int, temperature: float) -> None:
    logits, batch = answered(seed)
    wrong = logits.argmax(1) != batch.labels
    found = repaired(logits, batch, temperature, **options)
    q = (found / temperature).softmax(1)
    torch.testing.assert_close(q.sum(1), torch.ones(B, dtype=q.dtype))
    assert q.argmax(1).equal(batch.labels)
    assert found[~wrong].equal(logits[~wrong])
    assert not found[wrong].isclose(logits[wrong]).all(1).any()


@pytest.mark.parametrize("options", [o for o in RULES if o["rule"] in ("logit_lift", "set_prob")], ids=str)
@given(seed=st.integers(0, 999), temperature=st.sampled_from(TEMPERATURES))
def test_the_other_classes_keep_their_ratios(options: dict[str, Any], seed: int, temperature: float) -> None:
    logits, batch = answered(seed)
    others = torch.ones(B, C, dtype=torch.bool).scatter(1, batch.labels[:, None], value=False)
    p, q = (
        (z / temperature).softmax(1)[others].reshape(B, C - 1) for z in (logits, repaired(logits, batch, **options))
    )
    torch.testing.assert_close(q / q.sum(1, keepdim=True), p / p.sum(1, keepdim=True))


@given(seed=st.integers(0, 999), temperature=st.sampled_from(TEMPERATURES), delta=st.floats(0, 5))
def test_a_lifts_probability_is_the_closed_form(seed: int, temperature: float, delta: float) -> None:
    logits, batch = answered(seed)
    q = (repaired(logits, batch, delta=delta) / temperature).softmax(1)
    p, labels = (logits / temperature).softmax(1), batch.labels[:, None]
    p_y, largest = p.gather(1, labels), p.scatter(1, labels, 0).amax(1, keepdim=True)
    kappa = math.exp(delta / temperature) * largest / (1 - p_y)
    wrong = logits.argmax(1) != batch.labels
    torch.testing.assert_close(q.gather(1, labels)[wrong], (kappa / (1 + kappa))[wrong])


@given(seed=st.integers(0, 999))
def test_a_lift_of_zero_is_a_tie(seed: int) -> None:
    logits, batch = answered(seed)
    found = repaired(logits, batch, delta=0.0)
    assert found.gather(1, batch.labels[:, None])[:, 0].equal(found.amax(1))


@given(seed=st.integers(0, 999))
def test_a_swap_exchanges_two_logits(seed: int) -> None:
    logits, batch = answered(seed)
    found = repaired(logits, batch, rule="swap")
    assert found.sort(1).values.equal(logits.sort(1).values)
    wrong = (logits.argmax(1) != batch.labels).nonzero()[:, 0]
    for i in wrong.tolist():
        label, top = int(batch.labels[i]), int(logits[i].argmax())
        assert (found[i, label], found[i, top]) == (logits[i, top], logits[i, label])


@given(seed=st.integers(0, 999), temperature=st.sampled_from(TEMPERATURES), probability=st.floats(0.5, 0.99))
def test_a_set_probability_holds_at_the_losss_temperature(seed: int, temperature: float, probability: float) -> None:
    logits, batch = answered(seed)
    found = repaired(logits, batch, temperature, rule="set_prob", probability=probability)
    q = (found / temperature).softmax(1).gather(1, batch.labels[:, None])[:, 0]
    wrong = logits.argmax(1) != batch.labels
    torch.testing.assert_close(q[wrong], torch.full_like(q[wrong], probability))


@given(seed=st.integers(0, 999), temperature=st.sampled_from(TEMPERATURES))
def test_lsr_gives_the_smoothed_label(seed: int, temperature: float) -> None:
    logits, batch = answered(seed)
    q = (repaired(logits, batch, temperature, rule="lsr", smoothing=0.3) / temperature).softmax(1)
    wrong = logits.argmax(1) != batch.labels
    want = 0.7 * torch.eye(C, dtype=q.dtype)[batch.labels] + 0.3 / C
    torch.testing.assert_close(q[wrong], want[wrong])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_small_lift_is_no_tie_in_half_precision(dtype: torch.dtype) -> None:
    logits = torch.full((B, C), 100.0, dtype=dtype)
    _, batch = answered(0)
    found = repaired(logits, replace_labels(batch, 3), delta=0.01)
    assert found.dtype == torch.float32
    assert found.argmax(1).tolist() == [3] * B


def replace_labels(batch: Batch, label: int) -> Batch:
    return Batch(batch.images, torch.full((B,), label), batch.rows, view=0)


def test_what_cannot_be_repaired_is_refused() -> None:
    lift, (logits, batch) = LiftTarget(LiftTarget.Config(), Shapes(classes=C)), answered(0)
    with pytest.raises(ShapeError, match="teacher: STAGE"):
        lift.before(Outputs(logits), None, batch)
    with pytest.raises(ShapeError, match="5 classes apart, the labels 6"):
        lift.before(Outputs(logits), Outputs(logits[:, :5]), batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "swap", "delta": 1.0}, "delta is for rule: logit_lift, not swap"),
        ({"probability": 0.8}, "probability is for rule: set_prob"),
        ({"rule": "set_prob", "smoothing": 0.1}, "smoothing is for rule: lsr"),
        ({"delta": -1.0}, "delta"),
        ({"rule": "set_prob", "probability": 0.4}, "probability"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LiftTarget.Config(**options)
