"""All sides of the comparison of teachers answer the same question."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from benchmarks.teachers import NETWORKS, measure, sides


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What traces a network is no tensor, which is checked in tests alone."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_all_sides_answer_alike() -> None:
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = sides(NETWORKS[1], "fp32", images)
    plain = asked["plain"]()
    for name in ("folded", "ours"):
        torch.testing.assert_close(asked[name](), plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> torch.Tensor:
        order.append(name)
        return torch.zeros(1)

    seconds = measure({name: lambda name=name: side(name) for name in "ab"}, rounds=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(found) for found in seconds.values()] == [2, 2]
