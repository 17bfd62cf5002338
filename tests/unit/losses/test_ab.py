from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdscale.api import Batch, Outputs, Shapes
from kdscale.errors import ShapeError
from kdscale.losses.ab import ActivationBoundaries, boundary_distance

BATCH = Batch(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), torch.arange(5), view=0)
LAYERS = [(3, 4, 4), (4, 2, 2)]


def loss(teacher: list[tuple[int, ...]] = LAYERS, **options: Any) -> ActivationBoundaries:
    return ActivationBoundaries(ActivationBoundaries.Config(**options), Shapes(2, LAYERS, teacher))


def answers(seed: int, shapes: list[tuple[int, ...]] = LAYERS, scale: float = 2.0) -> Outputs:
    rng = torch.Generator().manual_seed(seed)
    return Outputs(torch.zeros(5, 2), [scale * torch.randn(5, *shape, generator=rng) for shape in shapes])


def plain(**options: Any) -> ActivationBoundaries:
    return loss(connect="where_needed", **options)


@given(seed=st.integers(0, 999), margin=st.floats(0.1, 4))
def test_equals_the_papers_cases(seed: int, margin: float) -> None:
    s, t = np.random.default_rng(seed).normal(scale=2, size=(2, 6, 7))
    t[0] = 0  # neither active nor not: counts as not
    active = t > 0
    want = (s + margin) ** 2 * (~active & (s > -margin)) + (s - margin) ** 2 * (active & (s <= margin))
    got = boundary_distance(torch.from_numpy(s), torch.from_numpy(t), margin)
    np.testing.assert_allclose(got, want.sum(1), rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 99))
def test_the_gradient_by_hand_is_that_of_finite_differences(seed: int) -> None:
    s, t = torch.from_numpy(np.random.default_rng(seed).normal(scale=2, size=(2, 3, 4, 2, 2)))
    assert torch.autograd.gradcheck(lambda leaf: boundary_distance(leaf, t, 1.0), s.requires_grad_())


@given(seed=st.integers(0, 999))
def test_only_the_teachers_signs_matter(seed: int) -> None:
    student, teacher = answers(seed), answers(seed + 1)
    signs = Outputs(teacher.logits, [torch.sign(f) * (f.abs() + 7) for f in teacher.features])
    torch.testing.assert_close(plain()(student, signs, BATCH), plain()(student, teacher, BATCH))


@given(seed=st.integers(0, 999))
def test_neurons_beyond_the_margin_on_the_right_side_have_no_loss_and_no_gradient(seed: int) -> None:
    teacher = answers(seed)
    features = [(torch.sign(f) * (1.5 + f.abs())).requires_grad_() for f in teacher.features]
    values = plain(margin=1.0)(Outputs(teacher.logits, features), teacher, BATCH)
    values.sum().backward()
    assert values.abs().max() == 0
    assert all(f.grad is not None and f.grad.abs().max() == 0 for f in features)


def test_deeper_layers_weigh_twice_as_much_and_sums_take_the_authors_factor() -> None:
    student, teacher = answers(0), answers(1)
    layers = [boundary_distance(s, t, 1.0) for s, t in zip(student.features, teacher.features, strict=True)]
    summed = 0.003 * (0.5 * layers[0] + layers[1])
    torch.testing.assert_close(plain()(student, teacher, BATCH), summed)
    torch.testing.assert_close(plain(reduction="mean")(student, teacher, BATCH), layers[0] / 48 + layers[1] / 16)


def test_connectors_stand_everywhere_or_where_channels_differ() -> None:
    wider = [(3, 4, 4), (6, 2, 2)]
    always, needed = loss(wider).connectors, loss(wider, connect="where_needed").connectors
    assert [type(c) for c in always] == [nn.Sequential, nn.Sequential]
    assert [type(c) for c in needed] == [nn.Identity, nn.Sequential]
    first = always[0]
    assert isinstance(first, nn.Sequential)
    assert isinstance(first[0], nn.Conv2d)
    assert first[0].bias is None


@given(seed=st.integers(0, 999))
def test_its_figure_is_the_share_of_neurons_that_fire_alike(seed: int) -> None:
    student, teacher, ab = answers(seed), answers(seed + 1), plain()
    ab(student, teacher, BATCH)
    shares = [((s > 0) == (t > 0)).double().mean() for s, t in zip(student.features, teacher.features, strict=True)]
    assert float(ab.measured["signs"]) == pytest.approx(float(torch.stack(shares).mean()))
    ab(teacher, teacher, BATCH)
    assert ab.measured["signs"] == 1
    ab(Outputs(teacher.logits, [-f for f in teacher.features]), teacher, BATCH)
    assert ab.measured["signs"] == 0
    assert ab.measured.keys() == set(ab.figures)


def test_signs_come_to_agree_without_ever_falling_back() -> None:
    teacher, ab = answers(1), plain()
    features = [f.requires_grad_() for f in answers(0).features]
    shares = []
    for _ in range(30):
        value = ab(Outputs(teacher.logits, features), teacher, BATCH).sum()
        shares.append(float(ab.measured["signs"]))
        for feature, slope in zip(features, torch.autograd.grad(value, features), strict=True):
            feature.data -= 50 * slope  # the loss is a thousandth of a sum of squares
    assert shares == sorted(shares)
    assert shares[0] < 0.7
    assert shares[-1] == 1


def test_connectors_train() -> None:
    wider = [(3, 4, 4), (6, 2, 2)]
    ab = loss(wider)
    ab(answers(0), answers(1, wider), BATCH).mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in ab.parameters())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    def cast(outputs: Outputs, dtype: torch.dtype) -> Outputs:
        return Outputs(outputs.logits, [f.to(half).to(dtype).requires_grad_() for f in outputs.features])

    student, teacher = answers(0, scale=300.0), answers(1)
    small = cast(student, half)
    got = plain()(small, cast(teacher, half), BATCH)
    got.sum().backward()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain()(cast(student, torch.float32), cast(teacher, torch.float32), BATCH))
    assert all(f.grad is not None and torch.isfinite(f.grad).all() for f in small.features)


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_constant_features_stay_finite(fill: float) -> None:
    features = [torch.full((5, *shape), fill, requires_grad=True) for shape in LAYERS]
    ab = loss()
    values = ab(Outputs(torch.zeros(5, 2), features), answers(1), BATCH)
    values.sum().backward()
    grads: list[Tensor | None] = [f.grad for f in features] + [p.grad for p in ab.parameters()]
    assert torch.isfinite(values).all()
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"4x4.*8x8"):
        loss([(3, 8, 8), (4, 2, 2)])


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"reduction": "max"}, {"connect": "never"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ActivationBoundaries.Config(**options)
