"""The clock of a profile: every moment belongs to one phase, and what backward waits for is told apart."""

from __future__ import annotations

import time

import pytest
import torch

from kdscale.phases import phase, recorded_by
from kdscale.train import profiling
from kdscale.train.profiling import Clock

CPU = torch.device("cpu")


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A made-up clock: its first entry is the time."""
    now = [0.0]
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: now[0])
    return now


def spent(step: dict[str, float]) -> dict[str, float]:
    return {name: seconds for name, seconds in step.items() if seconds}


def test_every_moment_belongs_to_the_innermost_phase(seconds: list[float]) -> None:
    clock = Clock(CPU)
    with recorded_by(clock):
        seconds[0] = 1.0  # nobody says what
        with phase("losses"):
            seconds[0] = 3.0
            with phase("student"):
                seconds[0] = 7.0
            seconds[0] = 8.0
        clock.end_step()
        with phase("validation"):
            seconds[0] = 20.0

    assert [*map(spent, clock.read())] == [{"other": 1.0, "losses": 3.0, "student": 4.0}, {"validation": 12.0}]
    assert clock.entered == {"losses": 1, "student": 1, "validation": 1}


def test_backward_waits_for_others_from_its_last_gradient_on(seconds: list[float]) -> None:
    clock = Clock(CPU)
    with recorded_by(clock):
        with phase("backward"):
            for at in (2.0, 5.0):
                seconds[0] = at
                clock.gradient_came(torch.zeros(1))
            seconds[0] = 6.5
        with phase("backward"):  # frozen throughout: no gradient of this one's
            seconds[0] = 7.0
        clock.end_step()

    assert spent(clock.read()[0]) == {"backward": 5.5, "all_reduce": 1.5}


def test_a_real_clock_loses_nothing() -> None:
    begun = time.perf_counter()
    clock = Clock(CPU)
    with recorded_by(clock):
        for _ in range(3):
            with phase("student"):
                torch.randn(64, 64).exp()
            clock.end_step()
    took = time.perf_counter() - begun

    steps = clock.read()
    assert 0 < sum(sum(step.values()) for step in steps) <= took
    assert next(iter(steps[0])) == "other"
