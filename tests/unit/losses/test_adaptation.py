from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from kdscale.api import IGNORED, Batch, Outputs, Shapes
from kdscale.losses.adaptation import (
    KnowledgeAdaptation,
    adaptation,
    channel_affinity,
    location_affinity,
    reconstruction,
)

ROWS, SIDE = 3, 4
CELLS = torch.full((ROWS,), float(SIDE * SIDE), dtype=torch.float64)


def draw(seed: int, channels: int = 5, side: int = SIDE) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, channels, side, side, generator=rng, dtype=torch.float64)


def batch(labels: Tensor | None = None) -> Batch:
    labels = torch.zeros(ROWS, 16, 16, dtype=torch.int64) if labels is None else labels
    return Batch(torch.zeros(ROWS, 1, 16, 16, dtype=torch.uint8), labels, torch.arange(ROWS), view=0)


def loss(student: int = 4, teacher: int = 6, **options: Any) -> KnowledgeAdaptation:
    torch.manual_seed(0)
    shapes = Shapes(2, [(student, 2, 2)], [(teacher, SIDE, SIDE)])
    return KnowledgeAdaptation(KnowledgeAdaptation.Config(**options), shapes).double()


def answers(feature: Tensor) -> Outputs:
    return Outputs(torch.zeros(ROWS, 2, 16, 16), [feature])


@given(seed=st.integers(0, 999), channels=st.sampled_from([5, SIDE**2, 20]))
def test_equals_the_formulas(seed: int, channels: int) -> None:
    """With fewer, as many and more channels than locations."""
    s, t = draw(seed, channels), draw(seed + 1, channels)
    a, b = (functional.normalize(f.flatten(2), dim=1) for f in (s, t))
    matrices = [n.transpose(1, 2) @ n / SIDE**2 for n in (a, b)]
    want = (matrices[0] - matrices[1]).square().sum((1, 2))
    torch.testing.assert_close(location_affinity(s, t, CELLS), want)
    c, d = (functional.normalize(f.flatten(2), dim=2) for f in (s, t))
    outer = [torch.einsum("bci,bcj->bcij", n, n) for n in (c, d)]
    want = (outer[0] - outer[1]).flatten(1).norm(dim=1) / SIDE**2
    torch.testing.assert_close(channel_affinity(s, t, CELLS), want)
    u, v = (f.flatten(1) / f.flatten(1).norm(dim=1, keepdim=True) for f in (s, t))
    torch.testing.assert_close(adaptation(s, t), (u - v).abs().sum(1))
    torch.testing.assert_close(
        reconstruction(s, t, draw(2, 2), 0.3)[0],
        ((s - t)[0].square().sum() + 0.3 * draw(2, 2)[0].abs().sum()) / s[0].numel(),
    )


@given(seed=st.integers(0, 999))
def test_identical_maps_are_at_no_distance(seed: int) -> None:
    t = draw(seed)
    for value in (adaptation(t, t), location_affinity(t, t, CELLS), channel_affinity(t, t, CELLS)):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6)


@given(seed=st.integers(0, 999))
def test_a_scale_of_each_location_changes_no_affinity_of_locations(seed: int) -> None:
    s, t = draw(seed), draw(seed + 1)
    scales = 0.1 + draw(seed + 2, 1).abs()
    torch.testing.assert_close(location_affinity(s * scales, t, CELLS), location_affinity(s, t, CELLS))
    scales = 0.1 + draw(seed + 2, 5)[:, :, :1, :1].abs()
    torch.testing.assert_close(channel_affinity(s * scales, t, CELLS), channel_affinity(s, t, CELLS))


@pytest.mark.parametrize("affinity", ["location", "perchannel"])
def test_cells_without_a_label_count_nowhere(affinity: str) -> None:
    term = loss(affinity=affinity, reconstruction=0).eval()
    labels = torch.zeros(ROWS, 16, 16, dtype=torch.int64)
    labels[:, 8:] = IGNORED
    own, theirs = draw(0, 4), draw(1, 6)
    other = theirs.clone()
    other[:, :, 3] += 5  # two layers of 3x3 see two rows: of the labelled half, rows 0 and 1, row 0 is out of reach
    near = term(answers(own), answers(theirs), batch(labels)), term(answers(own), answers(other), batch(labels))
    labels[:, 4:] = IGNORED
    far = term(answers(own), answers(theirs), batch(labels)), term(answers(own), answers(other), batch(labels))
    assert not torch.allclose(*near)
    torch.testing.assert_close(*far)


def test_the_translator_of_a_stage_before_is_left_as_it_is() -> None:
    """Neither its encoder nor its decoder has a gradient, and the student's adapters have; its map is enlarged."""
    term, own = loss(reconstruction=0), draw(0, 4, 2).requires_grad_()
    term(answers(own), answers(draw(1, 6)), batch()).sum().backward()
    assert own.grad is not None
    assert all(p.grad is None for p in term.translators.parameters())
    assert all(p.grad is not None for p in (*term.adapters.parameters(), *term.affinity_adapters.parameters()))


def test_a_translator_learns_more_than_the_mean() -> None:
    term, theirs = loss(distance="none"), draw(0, 6, SIDE) + draw(1, 1)
    assert len(term.adapters) == 0
    optimizer = torch.optim.Adam(term.parameters(), 0.01)
    for _ in range(150):
        value = term(answers(draw(0, 4)), answers(theirs), batch()).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    mean_predictor = (theirs - theirs.mean((0, 2, 3), keepdim=True)).square().mean()
    assert value < 0.7 * mean_predictor


def test_a_stage_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a weight above 0"):
        KnowledgeAdaptation.Config(distance="none", reconstruction=0)
